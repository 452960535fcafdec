// Forward pass of a multilayer perceptron; ssae.payloads.mlp_forward is the same arithmetic in NumPy.

const sigmoid = (x) => 0.5 * (1 + Math.tanh(0.5 * x));

export const ACTIVATIONS = {
  identity: (x) => x,
  relu: (x) => Math.max(x, 0),
  tanh: Math.tanh,
  silu: (x) => x * sigmoid(x),
  sigmoid,
};

/** Run `layers` on a batch stored row by row; returns the outputs, row by row. */
export function forward(layers, inputs) {
  const width = layers[0].weight.shape[1];
  if (inputs.length % width !== 0) {
    throw new Error(`${inputs.length} numbers do not make rows of ${width}`);
  }
  const rows = inputs.length / width;
  // Doubles inside: rounding then never shows, and JavaScript has no faster float32.
  let current = Float64Array.from(inputs);
  for (const { weight, bias, activation } of layers) {
    const [outWidth, inWidth] = weight.shape;
    const act = ACTIVATIONS[activation];
    if (!act) throw new Error(`unknown activation "${activation}"`);
    const next = new Float64Array(rows * outWidth);
    for (let row = 0; row < rows; row += 1) {
      const start = row * inWidth;
      for (let j = 0; j < outWidth; j += 1) {
        const line = j * inWidth;
        let sum = bias.values[j];
        for (let i = 0; i < inWidth; i += 1) sum += weight.values[line + i] * current[start + i];
        next[row * outWidth + j] = act(sum);
      }
    }
    current = next;
  }
  return Float32Array.from(current);
}

/** `predict(name, inputs)` answered in this page by the payload's own perceptrons. */
export function mlpPredict(models) {
  return async (name, inputs) => {
    if (!models[name]) throw new Error(`the payload holds no model "${name}"`);
    return forward(models[name], inputs);
  };
}
