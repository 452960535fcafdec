// Answers for the parity test: `node parity.js payload.json model inputs.json` prints the outputs as JSON.

import { readFileSync } from "node:fs";

import { mlpPredict } from "./src/mlp.js";
import { parsePayload } from "./src/payload.js";

const [payloadFile, model, inputsFile] = process.argv.slice(2);
const payload = parsePayload(JSON.parse(readFileSync(payloadFile, "utf8")), payloadFile);
const outputs = await mlpPredict(payload.models)(model, JSON.parse(readFileSync(inputsFile, "utf8")));
console.log(JSON.stringify([...outputs]));
