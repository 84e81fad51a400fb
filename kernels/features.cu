// features.cu -- the compiled feature table walked over a token batch, all features in one pass over the tokens.
//
// How a warp walks its rows is in common/features.cuh. Where the table fits, it lies in shared memory whole
// (features_shared) or, as for large vocabularies, but for the class map and the spelled automata (features_mapped); else
// all is read from global memory behind the caches (features_global).
//
// Bytes: each token once, F floats per row. Shared-memory cycles per 32 tokens of 32 bits: 1 copy in, 2 + 1 for classes,
// then per automaton, or word of bit-parallel patterns, 1 read and a look-up of about 2.5 (bank conflicts of 32 independent
// states); of 16 bits: half of the copies and reads. kernels/README.md has the sums.
#include "common/features.cuh"

using namespace features;

// Where the table is read from.
enum Place { kShared, kMapped, kGlobal };

// phi[rows, features] of a batch. Dynamic shared memory: the first `shared_words` of the table, padded to 4 (with the class
// map if kShared, without if kMapped, none if kGlobal), two tiles per warp, then states[states_per_row * 32] per warp unless
// kGlobal; then `spare` has that many words for every warp of the grid. At most 352 threads, any grid.
template <Place kPlace, typename T>
DEV_FN void features_of(const uint32_t* words, uint32_t shared_words, uint32_t vocab, const Tokens<T>& batch,
                        const FeatureOutputs& outputs, uint32_t* spare) {
  SHARED_DYN(uint32_t, memory);
  const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
  const uint32_t table_words = kPlace == kGlobal ? 0 : (shared_words + 3) / 4 * 4;
  if (kPlace != kGlobal) {
    for (uint32_t at = threadIdx.x; at < shared_words; at += blockDim.x) memory[at] = words[at];
    __syncthreads();
  }
  const uint32_t map = words[3];
  const Table table{kPlace == kGlobal ? words : memory, (kPlace == kShared ? memory : words) + map, words, vocab};
  const bool fused = kPlace != kGlobal && only_words(table);
  const uint64_t warp_in_grid = uint64_t(blockIdx.x) * warps + warp;
  const uint32_t states_of_warp = outputs.states_per_row * 32;
  uint32_t* tiles = memory + table_words + warp * 2 * kTileWords;
  uint32_t* states = kPlace == kGlobal ? spare + warp_in_grid * states_of_warp
                                       : memory + table_words + warps * 2 * kTileWords + warp * states_of_warp;
  for (uint64_t first = warp_in_grid * 32; first < batch.rows; first += uint64_t(gridDim.x) * warps * 32)
    rows_of_warp(table, fused, batch, first, outputs, tiles, states + lane);
}

// Two blocks to a multiprocessor, but where ptxas finds a register too few for that.
#define FEATURES_KERNEL(name, place, token)                                                                             \
  extern "C" __global__ void __launch_bounds__(352, place == kGlobal ? 1 : 2)                                             \
  name(const uint32_t* words, uint32_t shared_words, uint32_t vocab, const token* tokens, const uint32_t* lengths,      \
       uint64_t rows, uint32_t longest, uint32_t eos, uint32_t features, uint32_t states_per_row, const float* custom,  \
       uint32_t customs, uint32_t* spare, float* phi, unsigned long long* status) {                                     \
    const Tokens<token> batch{tokens, lengths, rows, longest, eos};                                                     \
    const FeatureOutputs outputs{features, states_per_row, customs, custom, phi, status};                               \
    features_of<place>(words, shared_words, vocab, batch, outputs, spare);                                              \
  }
FEATURES_KERNEL(features_shared, kShared, uint32_t)
FEATURES_KERNEL(features_mapped, kMapped, uint32_t)
FEATURES_KERNEL(features_global, kGlobal, uint32_t)
FEATURES_KERNEL(features_shared_u16, kShared, uint16_t)
FEATURES_KERNEL(features_mapped_u16, kMapped, uint16_t)
FEATURES_KERNEL(features_global_u16, kGlobal, uint16_t)
EXPORT_KERNEL(features_shared)
EXPORT_KERNEL(features_mapped)
EXPORT_KERNEL(features_global)
EXPORT_KERNEL(features_shared_u16)
EXPORT_KERNEL(features_mapped_u16)
EXPORT_KERNEL(features_global_u16)
