// emulator.h -- what device code sees instead of CUDA's headers when the host's C++ compiler reads a kernel.
#pragma once
#include "language.h"

#include "runtime.h"

#include "atomics.h"
#include "half.h"
#include "intrinsics.h"
#include "ptx.h"
#include "warp.h"
