// The Gaussian window of Eq. 4 as the kernels get it. Host only.
#pragma once

#include <cmath>

#include "pspl_params.h"

namespace pspl {

// Gaussian weights, formed in float64. Rounding them to T leaves a sum a little off 1, which would act on every pixel
// in the same direction: the excess goes back into the taps, from the centre outwards, where they are small enough to
// hold the rest of it.
template <typename T>
void fill_taps(Params<T>& p, double sigma) {
  double total = 0;
  double weight[kMaxRadius + 1];
  for (int i = 0; i <= p.radius; ++i) {
    weight[i] = std::exp(-0.5 * (i / sigma) * (i / sigma));
    total += i == 0 ? weight[i] : 2 * weight[i];
  }
  double excess = -1;
  for (int i = 0; i <= p.radius; ++i) {
    p.taps[i] = static_cast<T>(weight[i] / total);
    excess += (i == 0 ? 1 : 2) * static_cast<double>(p.taps[i]);
  }
  for (int i = 1; i <= p.radius; ++i) {
    const T mended = static_cast<T>(p.taps[i] - excess / 2);
    if (mended <= T(0)) break;
    excess += 2 * (static_cast<double>(mended) - static_cast<double>(p.taps[i]));
    p.taps[i] = mended;
  }
}

}  // namespace pspl
