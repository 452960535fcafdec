import assert from "node:assert/strict";
import { test } from "node:test";

import { chooser, once } from "../src/choices.js";

/** A loader whose answers come when the test says so: `answers.get(key)` are the open ones, oldest first. */
function slowLoader() {
  const answers = new Map();
  const load = (key) =>
    new Promise((resolve, reject) => {
      answers.set(key, [...(answers.get(key) ?? []), { resolve, reject }]);
    });
  return { answers, load };
}

/** A figure that shows "first", and what happens to it. */
function figure(load, shown = "first") {
  const seen = { shown: [], back: [], trouble: { textContent: "" } };
  const choose = chooser({
    load,
    show: (key, part) => seen.shown.push([key, part]),
    back: (key) => seen.back.push(key),
    trouble: seen.trouble,
    shown,
  });
  return { choose, seen };
}

test("a part is loaded once, and again after a failure only", async () => {
  const { answers, load } = slowLoader();
  const part = once(load);
  const [one, two] = [part("a"), part("a")];
  assert.equal(one, two);
  answers.get("a")[0].reject(new Error("no network"));
  await assert.rejects(one, /no network/);
  const again = part("a");
  assert.equal(answers.get("a").length, 2);
  answers.get("a")[1].resolve(7);
  assert.equal(await again, 7);
  assert.equal(await part("a"), 7);
  assert.equal(answers.get("a").length, 2);
});

test("the newest choice is shown, whichever loads first", async () => {
  const { answers, load } = slowLoader();
  const { choose, seen } = figure(once(load));
  const both = [choose("slow"), choose("fast")];
  answers.get("fast")[0].resolve("F");
  answers.get("slow")[0].resolve("S");
  await Promise.all(both);
  assert.deepEqual(seen.shown, [["fast", "F"]]);
});

test("a choice made twice is loaded and shown once", async () => {
  const { answers, load } = slowLoader();
  const { choose, seen } = figure(once(load));
  const both = [choose("a"), choose("a")];
  assert.equal(answers.get("a").length, 1);
  answers.get("a")[0].resolve("A");
  await Promise.all(both);
  assert.deepEqual(seen.shown, [["a", "A"]]);
});

test("a choice that cannot be loaded is told, goes back, and may be made again", async () => {
  const { answers, load } = slowLoader();
  const { choose, seen } = figure(once(load));
  const failed = choose("a");
  answers.get("a")[0].reject(new Error("the server answered 404"));
  await failed;
  assert.equal(seen.trouble.textContent, "Could not be loaded: the server answered 404");
  assert.deepEqual([seen.shown, seen.back], [[], ["first"]]);
  const again = choose("a");
  assert.equal(seen.trouble.textContent, "");
  answers.get("a")[1].resolve("A");
  await again;
  assert.deepEqual(seen.shown, [["a", "A"]]);
});

test("a failure nobody waits for any more is not told", async () => {
  const { answers, load } = slowLoader();
  const { choose, seen } = figure(once(load));
  const both = [choose("a"), choose("b")];
  answers.get("a")[0].reject(new Error("too late"));
  answers.get("b")[0].resolve("B");
  await Promise.all(both);
  assert.deepEqual([seen.shown, seen.back, seen.trouble.textContent], [[["b", "B"]], [], ""]);
});

test("before anything is shown a failure is the caller's", async () => {
  const { choose, seen } = figure(async () => Promise.reject(new Error("no payload")), null);
  await assert.rejects(choose("first"), /no payload/);
  assert.deepEqual(seen.back, []);
});
