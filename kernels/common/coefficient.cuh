// coefficient.cuh -- the coefficient a of a sequence's gradient a * grad log pi, as a function of the finished log pi:
// src/gradient/divergence.rs and `Weighting` of src/models/mod.rs.
#pragma once
#include "common/device.cuh"

// Those of src/gradient/divergence.rs in its order, and a balance.
enum Kind : uint32_t {
  kGiven, kBaseline, kForwardKl, kReverseKl, kTotalVariation, kJensenShannon, kForwardChiSquare, kReverseChiSquare, kAlpha,
  kBalance
};

DEV_FN bool is_bounded(uint32_t kind, double alpha) {
  return kind != kReverseKl && kind != kReverseChiSquare && !(kind == kAlpha && alpha >= 1);
}

// -(pi / q) (f'(pi / p) - f'(inf)).
DEV_FN double divergence_coefficient(uint32_t kind, double alpha, double log_pi, double log_p, double log_q) {
  if (log_p == -INFINITY) return is_bounded(kind, alpha) ? 0.0 : double(NAN);
  const double ratio = exp(log_pi - log_q), log_t = log_pi - log_p;
  switch (kind) {
    case kForwardKl: return exp(log_p - log_q);
    case kReverseKl: return ratio == 0 ? 0.0 : -ratio * log_t;
    case kTotalVariation: return log_t < 0 ? ratio : ratio * (log_t == 0 ? 0.5 : 0.0);
    case kJensenShannon: return ratio == 0 ? 0.0 : 0.5 * ratio * (fmax(-log_t, 0.0) + log1p(exp(-fabs(log_t))));
    case kForwardChiSquare: return exp(2 * log_p - log_pi - log_q);
    case kReverseChiSquare: return -2 * exp(2 * log_pi - log_p - log_q);
  }
  const double power = exp(alpha * log_pi + (1 - alpha) * log_p - log_q);
  return alpha < 1 ? power / (1 - alpha) : (ratio - power) / (alpha - 1);
}

// A divergence's coefficient and shift * pi / q, or a balance's; an infinite log q or log p takes a row out.
DEV_FN double shifted_coefficient(uint32_t kind, double alpha, double log_pi, double log_p, double log_q, double shift) {
  if (kind == kBalance) return log_p == INFINITY ? 0.0 : log_p - log_pi + shift;
  if (log_q == INFINITY) return 0.0;
  const double coefficient = divergence_coefficient(kind, alpha, log_pi, log_p, log_q);
  return shift == 0 ? coefficient : coefficient + shift * exp(log_pi - log_q);
}
