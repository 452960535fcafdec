import assert from "node:assert/strict";
import { test } from "node:test";

import { latest } from "../src/frame.js";

/** A task that ends when the test says so, and the requests that it was started with. */
function slowTask() {
  const started = [];
  const task = (request) => new Promise((resolve, reject) => started.push({ request, resolve, reject }));
  return { started, run: latest(task) };
}

const turn = () => new Promise((resolve) => setTimeout(resolve));

test("requests that come while one is answered replace each other", async () => {
  const { started, run } = slowTask();
  const done = run("a");
  run("b");
  run("c");
  started[0].resolve();
  await turn();
  assert.deepEqual(started.map(({ request }) => request), ["a", "c"]);
  started[1].resolve();
  await done;
});

test("a failed answer does not keep the newest request waiting", async () => {
  const { started, run } = slowTask();
  const done = run("a");
  run("b");
  started[0].reject(new Error("out of memory"));
  await turn();
  assert.equal(started[1].request, "b");
  started[1].resolve();
  await done;
});

test("the failure of the newest request is thrown, and the next one is answered", async () => {
  const { started, run } = slowTask();
  const failed = run("a");
  started[0].reject(new Error("out of memory"));
  await assert.rejects(failed, /out of memory/);
  const next = run("b");
  started[1].resolve();
  await next;
});

test("once there was an answer, an alarm tells of a failure, and is cleared by the next answer", async () => {
  const alarm = { textContent: "" };
  const started = [];
  const run = latest(() => new Promise((resolve, reject) => started.push({ resolve, reject })), alarm);
  const failed = run();
  started[0].reject(new Error("at the start"));
  await assert.rejects(failed, /at the start/);
  assert.equal(alarm.textContent, "");
  const answered = run();
  started[1].resolve();
  await answered;
  const told = run();
  started[2].reject(new Error("out of memory"));
  await told;
  assert.match(alarm.textContent, /out of memory/);
  const again = run();
  started[3].resolve();
  await again;
  assert.equal(alarm.textContent, "");
});
