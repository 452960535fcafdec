// Answers for the parity test: `node parity-corruption.js cases.json` prints mask and corrupted image of each case.

import { readFileSync } from "node:fs";

import { blend, blobMask, fillOf } from "./src/corruption.js";

const { side, cases } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const answers = cases.map(({ blobs, dials, kind, images, draws, opacity }) => {
  const mask = blobMask(blobs, dials, side);
  return { mask: [...mask], corrupted: [...blend(images.image, fillOf(kind, images, draws, side), mask, opacity)] };
});
console.log(JSON.stringify(answers));
