// Batch norm's graph in plain numbers: what normkit's Norm.trace computes, a channel at a time.
// x and dout are arrays [sample][channel]; statistics come back as [channel].
const normkit = (function () {
  "use strict";
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const mean = (values) => sum(values) / values.length;

  function channel(x, dout, gamma, beta, eps) {
    const m = x.length;
    // Forward, step by step.
    const mu = mean(x);
    const centered = x.map((v) => v - mu);
    const squared = centered.map((v) => v * v);
    const variance = mean(squared);
    const std = Math.sqrt(variance + eps);
    const inverse = 1 / std;
    const normalized = centered.map((v) => v * inverse);
    const scaled = normalized.map((v) => gamma * v);
    const out = scaled.map((v) => v + beta);
    // Backward, each line one step's own derivative; what is used twice adds up.
    const dScaled = dout;
    const dNormalized = dScaled.map((v) => v * gamma);
    const dInverse = sum(dNormalized.map((v, n) => v * centered[n]));
    const dStd = -dInverse / (std * std);
    const dVar = dStd / (2 * std);
    const dSquared = squared.map(() => dVar / m);
    const dCentered = dNormalized.map((v, n) => v * inverse + 2 * centered[n] * dSquared[n]);
    const dMean = -sum(dCentered);
    return {
      x, mean: mu, centered, squared, var: variance, std, inverse, normalized, gamma, scaled, beta, out,
      dx: dCentered.map((v) => v + dMean / m), d_mean: dMean, d_centered: dCentered,
      d_squared: dSquared, d_var: dVar, d_std: dStd, d_inverse: dInverse,
      d_normalized: dNormalized, d_gamma: sum(dScaled.map((v, n) => v * normalized[n])),
      d_scaled: dScaled, d_beta: sum(dout), d_out: dout,
    };
  }

  // With statistics that are given, as in inference: constants, through which nothing flows back.
  function inference(x, dout, gamma, beta, eps, mu, variance) {
    const std = Math.sqrt(variance + eps);
    return {
      running_mean: mu, running_var: variance, running_std: std,
      running_out: x.map((v) => gamma * (v - mu) / std + beta),
      running_dx: dout.map((v) => gamma / std * v),
    };
  }

  // What holds of every batch, as two sides that have to agree: [left, right].
  function identities(one, eps) {
    const m = one.x.length;
    const g = one.d_out, xhat = one.normalized;
    const share = one.var / (one.var + eps);
    const meanG = mean(g), meanGX = mean(g.map((v, n) => v * xhat[n]));
    const closed = g.map((v, n) => one.gamma / one.std * (v - meanG - xhat[n] * meanGX));
    return {
      sum_dx: [sum(one.dx), 0],
      mean_normalized: [mean(xhat), 0],
      square_normalized: [mean(xhat.map((v) => v * v)), share],
      along_normalized: [
        sum(one.dx.map((v, n) => v * xhat[n])), one.gamma / one.std * (1 - share) * m * meanGX,
      ],
      closed_form: [Math.max(...closed.map((v, n) => Math.abs(v - one.dx[n]))), 0],
    };
  }

  // PyTorch's convention: momentum weights the new batch, whose variance is taken as m / (m - 1).
  function update(running, one, momentum) {
    const m = one.x.length;
    return {
      mean: (1 - momentum) * running.mean + momentum * one.mean,
      var: (1 - momentum) * running.var + momentum * one.var * m / (m - 1),
    };
  }

  return { channel, inference, identities, update };
})();
