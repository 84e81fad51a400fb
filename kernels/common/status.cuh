// status.cuh -- faults in data on the device: the first row at fault goes to a status word, whatever the order of blocks.
// The codes are those of src/backend/gpu/status.rs.
#pragma once
#include "common/device.cuh"

enum Fault : unsigned {
  kBadRow = 1,         // a length or a token outside its space
  kBadLogits = 2,      // NaN or +inf
  kNoLogit = 3,        // -inf for all tokens
  kBadToken = 4,       // outside the vocabulary
  kBadWeight = 5,      // not finite
  kBadImportance = 6,  // a log-weight that is NaN or +inf, or beyond float
  kBadGradient = 7,    // a norm that is not finite
  kBadPolicy = 8,      // a log-prob of the policy that is NaN or +inf
  kBadPrefix = 9,      // an ended prefix whose log P or log pi is not finite
};

DEV_FN void note_fault(unsigned long long* status, unsigned long long row, Fault fault) {
  atomicMin(status, row << 8 | fault);
}
