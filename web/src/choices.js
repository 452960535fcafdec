// Choices whose parts have to be loaded first. Nothing here knows the page.

/** `load(key)`, asked once for each key; where it failed, the next call asks again. */
export function once(load) {
  const loads = new Map();
  return (key) => {
    if (!loads.has(key)) {
      const loading = load(key);
      loads.set(key, loading);
      loading.catch(() => loads.delete(key));
    }
    return loads.get(key);
  };
}

/**
 * What a control calls with its choice: `show(key, part)` once the part is there, unless another choice has been made
 * meanwhile. One that cannot be loaded is told in the element `trouble`, and `back(key)` sets the control to what the
 * figure still shows. Before anything is shown, a failure is left to the caller.
 */
export function chooser({ load, show, back, trouble, shown = null }) {
  let turn = 0;
  return async (key) => {
    const mine = (turn += 1);
    trouble.textContent = "";
    let part;
    try {
      part = await load(key);
    } catch (error) {
      if (shown === null) throw error;
      if (mine !== turn) return;
      back(shown);
      trouble.textContent = `Could not be loaded: ${error.message}`;
      return;
    }
    if (mine !== turn) return;
    shown = key;
    await show(key, part);
  };
}
