// features.cu -- the compiled feature table walked over a token batch, all features in one pass over the tokens.
//
// A lane owns a row, a warp 32 neighbouring rows. Rows are walked one token after the other, so a lane that read its own
// row would touch 32 cache lines per load, one per lane: 32 cycles of the L1 for 512 bytes, below the rate of the memory.
// Instead the warp copies tiles of 32 rows x 32 tokens to shared memory, 8 lanes per row, so that each 128-byte line is
// read once and whole; two tiles per warp, the next in flight while this one is walked. A pitch of 36 words puts the
// lanes' 16-byte reads of their own rows into different banks.
//
// Tokens become classes once, in the tile, after the spelled automata have seen them as they are; then each entry of the
// table is taken through the tile, its state held in registers meanwhile and between tiles in `states`, word k of a lane
// at states[32 k + lane]. Where the table fits, it lies in shared memory whole (features_shared) or, as for large
// vocabularies, but for the class map and the spelled automata (features_mapped); else all is read from global memory
// behind the caches (features_global).
//
// Bytes: each token once, F floats per row. Shared-memory cycles per 32 tokens: 1 copy in, 2 + 1 for classes, then per
// automaton, or word of bit-parallel patterns, 1 read and a look-up of about 2.5 (bank conflicts of 32 independent states).
#include "common/device.cuh"
#include "common/status.cuh"

constexpr uint32_t kTile = 32, kPitch = 36, kTileWords = 32 * kPitch, kNone = ~0u;

// The words of src/features/table.rs.
enum Kind : uint32_t {
  kAutomaton, kLength, kSubstring, kEdit, kShift, kCount, kSpelled, kDistinct, kCustom, kCombine
};
enum Operation : uint32_t { kNot, kAll, kAny, kAtLeast };
struct Entry {
  uint32_t kind, size, extent, first, second, third, targets;
};
struct Table {
  const uint32_t* words;    // all but what follows; perhaps in shared memory
  const uint32_t* classes;  // the class map
  const uint32_t* all;      // in global memory, where the spelled automata are
  uint32_t vocab;
};
DEV_FN uint32_t entries(const Table& table) { return table.words[0]; }
DEV_FN uint32_t width(const Table& table) { return table.words[1]; }
DEV_FN Entry entry_of(const Table& table, uint32_t at) {
  const uint32_t* w = table.words + 4 + 8 * at;
  return {w[0], w[1], w[2], w[3], w[4], w[5], w[6]};
}

struct Tokens {
  const uint32_t *tokens, *lengths;
  uint64_t rows;
  uint32_t longest, eos;
};

// Starts the copy of tokens [start, start + 32) of 32 rows from `first` on; what does not exist is left as it is.
DEV_FN void stage(const Tokens& batch, uint64_t first, uint32_t start, uint32_t* tile) {
  const uint32_t lane = threadIdx.x % 32;
  if (batch.longest % 4 == 0 && reinterpret_cast<uintptr_t>(batch.tokens) % 16 == 0) {
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
      const uint32_t r = 4 * i + lane / 8, t = lane % 8 * 4;
      if (first + r < batch.rows && start + t < batch.longest)
        dev::cp_async16(tile + r * kPitch + t, batch.tokens + (first + r) * batch.longest + start + t);
    }
  } else if (start + lane < batch.longest) {
#pragma unroll 8
    for (uint32_t r = 0; r < 32; r++)
      if (first + r < batch.rows) tile[r * kPitch + lane] = batch.tokens[(first + r) * batch.longest + start + lane];
  }
  dev::cp_async_commit();
}

// Calls step(word) for the first `count` words of a lane's row of the tile.
template <typename Step> DEV_FN void for_words(const uint32_t* row, uint32_t count, Step step) {
  for (uint32_t at = 0; at < count; at += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(row + at);
    step(four.x);
    if (at + 1 < count) step(four.y);
    if (at + 2 < count) step(four.z);
    if (at + 3 < count) step(four.w);
  }
}

// Tokens of a lane's row become classes; true where one is outside the vocabulary.
DEV_FN bool classify(const Table& table, uint32_t* row, uint32_t count) {
  bool bad = false;
  const auto class_of = [&](uint32_t token, bool used) {
    const bool known = token < table.vocab;
    bad |= used && !known;
    return known ? table.classes[token] : 0;
  };
  for (uint32_t at = 0; at < count; at += 4) {
    uint4& four = *reinterpret_cast<uint4*>(row + at);
    four = make_uint4(class_of(four.x, true), class_of(four.y, at + 1 < count), class_of(four.z, at + 2 < count),
                      class_of(four.w, at + 3 < count));
  }
  return bad;
}

// The longest suffix of the text so far that is a substring of the pattern lies in states[0] and has states[32] tokens;
// states[64] is the most so far.
DEV_FN void walk_substring(const Table& table, const Entry& entry, const uint32_t* row, uint32_t count,
                           uint32_t* states) {
  const uint32_t *next = table.words + entry.first, *links = table.words + entry.second, classes = width(table);
  uint32_t state = states[0], matched = states[32], longest = states[64];
  for_words(row, count, [&](uint32_t c) {
    uint32_t to = next[state * classes + c];
    while (to == kNone && state != 0) {
      state = links[2 * state];
      matched = links[2 * state + 1];
      to = next[state * classes + c];
    }
    if (to != kNone) {
      state = to;
      matched++;
      longest = max(longest, matched);
    }
  });
  states[0] = state, states[32] = matched, states[64] = longest;
}

// One column of one block of 32 pattern tokens (Myers 1999, Hyyro 2003); `carry` in {-1, 0, 1} is the change of the
// distance at the row above the block, the result that at row `out` of it.
DEV_FN int edit_block(uint32_t& plus, uint32_t& minus, uint32_t equal, int carry, uint32_t out) {
  const uint32_t down = carry < 0, up = carry > 0, vertical = equal | minus;
  equal |= down;
  const uint32_t horizontal = (((equal & plus) + plus) ^ plus) | equal;
  uint32_t grows = minus | ~(horizontal | plus), shrinks = plus & horizontal;
  const int change = int(grows >> out & 1) - int(shrinks >> out & 1);
  grows = grows << 1 | up, shrinks = shrinks << 1 | down;
  plus = shrinks | ~(vertical | grows);
  minus = grows & vertical;
  return change;
}

// states: distance, smallest, then plus and minus of each block. A block is taken through the whole tile before the
// next; what it hands down per token fits the bits of two words.
DEV_FN void walk_edit(const Table& table, const Entry& entry, const uint32_t* row, uint32_t count, uint32_t* states) {
  uint32_t up = 0, down = 0;
  for (uint32_t word = 0; word < entry.extent; word++) {
    const uint32_t* masks = table.words + entry.first + word;
    const uint32_t out = word + 1 == entry.extent ? (entry.size - 1) % 32 : 31;
    uint32_t &plus_at = states[(2 + 2 * word) * 32], &minus_at = states[(3 + 2 * word) * 32];
    uint32_t plus = plus_at, minus = minus_at, bit = 0, next_up = 0, next_down = 0;
    for_words(row, count, [&](uint32_t c) {
      const int carry = int(up >> bit & 1) - int(down >> bit & 1);
      const int change = edit_block(plus, minus, masks[c * entry.extent], carry, out);
      next_up |= uint32_t(change > 0) << bit, next_down |= uint32_t(change < 0) << bit;
      bit++;
    });
    plus_at = plus, minus_at = minus, up = next_up, down = next_down;
  }
  uint32_t distance = states[0], smallest = states[32];
  for (uint32_t bit = 0; bit < count; bit++) {
    distance += (up >> bit & 1) - (down >> bit & 1);
    smallest = min(smallest, distance);
  }
  states[0] = distance, states[32] = smallest;
}

// The W words at `from`, which is aligned to them, in one read.
template <uint32_t W> DEV_FN void load_words(uint32_t (&to)[W], const uint32_t* from) {
  if (W == 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(from);
    to[0] = four.x, to[W > 1 ? 1 : 0] = four.y, to[W > 2 ? 2 : 0] = four.z, to[W > 3 ? 3 : 0] = four.w;
  } else {
#pragma unroll
    for (uint32_t w = 0; w < W; w++) to[w] = from[w];
  }
}

// Shift-And on W words of patterns. states: bits of each word, then what each has found so far.
template <uint32_t W>
DEV_FN void walk_shift(const Table& table, const Entry& entry, const uint32_t* row, uint32_t count, bool begins,
                       uint32_t* states) {
  const uint32_t *masks = table.words + entry.first, *starts = table.words + entry.second;
  uint32_t bits[W], found[W], start[W], always[W], keep[W];
#pragma unroll
  for (uint32_t w = 0; w < W; w++) {
    bits[w] = states[32 * w], found[w] = states[32 * (W + w)];
    always[w] = starts[w], keep[w] = starts[2 * W + w];
    start[w] = begins ? always[w] | starts[W + w] : always[w];
  }
  for_words(row, count, [&](uint32_t c) {
    uint32_t mask[W];
    load_words(mask, masks + c * W);
#pragma unroll
    for (uint32_t w = 0; w < W; w++) {
      bits[w] = ((bits[w] << 1 & keep[w]) | start[w]) & mask[w];
      found[w] |= bits[w];
      start[w] = always[w];
    }
  });
#pragma unroll
  for (uint32_t w = 0; w < W; w++) states[32 * w] = bits[w], states[32 * (W + w)] = found[w];
}

// states: state and count.
DEV_FN void walk_count(const Table& table, const Entry& entry, const uint32_t* row, uint32_t count, uint32_t* states) {
  const uint32_t* next = table.words + entry.first;
  uint32_t state = states[0], ended = states[32];
  for_words(row, count, [&](uint32_t c) {
    const uint32_t to = next[state + c];
    ended += to >> 31;
    state = to & ~(1u << 31);
  });
  states[0] = state, states[32] = ended;
}

// An automaton over the symbols of each token; `row` holds tokens, not classes. One outside the vocabulary has none.
DEV_FN void walk_spelled(const Table& table, const Entry& entry, const uint32_t* row, uint32_t count, uint32_t* states) {
  const uint32_t *next = table.all + entry.first, *ends = table.all + entry.third, *symbols = ends + table.vocab;
  uint32_t state = states[0];
  for_words(row, count, [&](uint32_t token) {
    if (token >= table.vocab) return;
    const uint32_t end = ends[token];
    for (uint32_t at = token == 0 ? 0 : ends[token - 1]; at < end; at++)
      state = next[state + (symbols[at / 4] >> (at % 4 * 8) & 255)];
  });
  states[0] = state;
}

// Words of state that an entry needs.
DEV_FN uint32_t state_words(const Entry& entry) {
  switch (entry.kind) {
    case kAutomaton:
    case kSpelled: return 1;
    case kCount: return 2;
    case kSubstring: return 3;
    case kEdit: return 2 + 2 * entry.extent;
    case kShift: return 2 * entry.size;
    default: return 0;
  }
}

DEV_FN void start(const Table& table, uint32_t* states) {
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    const uint32_t words = state_words(entry);
    for (uint32_t k = 0; k < words; k++)
      states[32 * k] = entry.kind != kEdit ? 0 : k < 2 ? entry.size : k % 2 == 0 ? ~0u : 0;
    states += 32 * words;
  }
}

// Takes the spelled automata through `count` tokens.
DEV_FN void walk_tokens(const Table& table, const uint32_t* row, uint32_t count, uint32_t* states) {
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    if (entry.kind == kSpelled) walk_spelled(table, entry, row, count, states);
    states += 32 * state_words(entry);
  }
}

// Takes every other entry through `count` classes, the first of the row where it `begins`.
DEV_FN void walk(const Table& table, const uint32_t* row, uint32_t count, bool begins, uint32_t* states) {
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    if (entry.kind == kAutomaton) {  // states are stored times the number of classes
      const uint32_t* next = table.words + entry.first;
      uint32_t state = states[0];
      for_words(row, count, [&](uint32_t c) { state = next[state + c]; });
      states[0] = state;
    } else if (entry.kind == kShift) {
      if (entry.size == 1) walk_shift<1>(table, entry, row, count, begins, states);
      else if (entry.size == 2) walk_shift<2>(table, entry, row, count, begins, states);
      else walk_shift<4>(table, entry, row, count, begins, states);
    } else if (entry.kind == kCount) {
      walk_count(table, entry, row, count, states);
    } else if (entry.kind == kSubstring) {
      walk_substring(table, entry, row, count, states);
    } else if (entry.kind == kEdit) {
      walk_edit(table, entry, row, count, states);
    }
    states += 32 * state_words(entry);
  }
}

// A finished row: its tokens, how many with and without EOS, what was given for it, and where its values go.
struct FinishedRow {
  const uint32_t* tokens;
  uint32_t length, content, longest;
  const float* custom;
  float* out;        // [features]
  uint32_t* hidden;  // [hidden values], 32 words apart
  uint32_t features;
  __device__ __forceinline__ float& value(uint32_t target) const {
    return target < features ? out[target] : reinterpret_cast<float&>(hidden[32 * (target - features)]);
  }
};

// Different tokens over tokens: each is looked for among those before it.
DEV_FN float distinct(const FinishedRow& row) {
  uint32_t fresh = 0;
  for (uint32_t at = 0; at < row.content; at++) {
    uint32_t before = 0;
    while (before < at && row.tokens[before] != row.tokens[at]) before++;
    fresh += before == at;
  }
  return float(fresh) / float(row.content > 0 ? row.content : 1);
}

DEV_FN float combined(const Table& table, const Entry& entry, const FinishedRow& row) {
  const uint32_t* operands = table.words + entry.first;
  float value = entry.size == kAll ? 1.0f : 0.0f;
  for (uint32_t k = 0; k < entry.extent; k++) {
    const float operand = row.value(operands[k]);
    value = entry.size == kAll ? fminf(value, operand) : entry.size == kAny ? fmaxf(value, operand) : value + operand;
  }
  if (entry.size == kNot) return 1.0f - value;
  return entry.size == kAtLeast ? float(value >= __uint_as_float(entry.second)) : value;
}

// The value of an entry that has only one and no automaton.
DEV_FN float value_of(const Table& table, const Entry& entry, const uint32_t* states, const FinishedRow& row) {
  const float size = float(entry.size);
  switch (entry.kind) {
    case kLength: {
      const float part = float(row.length) / float(row.longest);
      return entry.size == 1 ? part : part * part;
    }
    case kSubstring: return float(states[64]) / size;
    case kEdit: return float(entry.size - states[32]) / size;
    case kCount: return float(min(states[32], entry.extent)) / float(entry.extent);
    case kSpelled: return __uint_as_float(table.all[entry.second + states[0] / entry.extent]);
    case kDistinct: return distinct(row);
    case kCustom: return row.custom[entry.size];
    default: return combined(table, entry, row);
  }
}

// Writes the features of a row.
DEV_FN void finish(const Table& table, const uint32_t* states, const FinishedRow& row) {
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    const uint32_t* targets = table.words + entry.targets;
    if (entry.kind == kAutomaton) {
      const uint32_t* values = table.words + entry.second + states[0] / width(table) * entry.extent;
      for (uint32_t k = 0; k < entry.extent; k++) row.value(targets[k]) = __uint_as_float(values[k]);
    } else if (entry.kind == kShift) {
      for (uint32_t k = 0; k < entry.extent; k++) {
        const uint32_t answer = table.words[entry.third + k], bit = answer / 2;
        const uint32_t word = states[(bit / 32 + (answer & 1 ? 0 : entry.size)) * 32];
        row.value(targets[k]) = float(word >> bit % 32 & 1);
      }
    } else {
      row.value(targets[0]) = value_of(table, entry, states, row);
    }
    states += 32 * state_words(entry);
  }
}

// What the launch gives to every row: [rows, features], the closures' values [rows, customs], words of state per row and
// how many of them, the last, are hidden values.
struct FeatureOutputs {
  uint32_t features, states_per_row, customs;
  const float* custom;
  float* phi;
  unsigned long long* status;
};

// The 32 rows from `first` on, by one warp. tiles: two of them.
DEV_FN void rows_of_warp(const Table& table, const Tokens& batch, uint64_t first, const FeatureOutputs& outputs, uint32_t* tiles,
                         uint32_t* states) {
  const uint32_t lane = threadIdx.x % 32, features = outputs.features;
  const uint64_t row = first + lane;
  uint32_t length = row < batch.rows ? batch.lengths[row] : 0, content = 0;
  bool bad = row < batch.rows && (length == 0 || length > batch.longest);
  if (bad) length = 0;
  const uint32_t count_tiles = (__reduce_max_sync(~0u, length) + kTile - 1) / kTile;
  start(table, states);
  stage(batch, first, 0, tiles);
  for (uint32_t k = 0; k < count_tiles; k++) {
    uint32_t* mine = tiles + k % 2 * kTileWords + lane * kPitch;
    stage(batch, first, k + 1 < count_tiles ? (k + 1) * kTile : batch.longest, tiles + (k + 1) % 2 * kTileWords);
    dev::cp_async_wait<1>();
    __syncwarp();  // the other lanes' copies
    uint32_t count = length > k * kTile ? min(length - k * kTile, kTile) : 0;
    if (count && k * kTile + count == length && mine[count - 1] == batch.eos) count--;
    walk_tokens(table, mine, count, states);
    bad |= classify(table, mine, count);
    walk(table, mine, count, k == 0, states);
    content += count;
    __syncwarp();  // before the tile is written again
  }
  dev::cp_async_wait<0>();
  if (bad) note_fault(outputs.status, row, kBadRow);
  // Rows of few features leave through the tile, as whole lines.
  const bool staged = features <= 2 * kPitch;
  float* out = staged ? reinterpret_cast<float*>(tiles) + lane * features : outputs.phi + row * features;
  __syncwarp();
  if (row < batch.rows) {
    uint32_t* hidden = states + 32 * (outputs.states_per_row - table.words[2]);
    const FinishedRow finished{batch.tokens + row * batch.longest, length, content, batch.longest,
                       outputs.custom + row * outputs.customs, out, hidden, features};
    if (!bad) finish(table, states, finished);
    for (uint32_t f = 0; bad && f < features; f++) out[f] = NAN;
  }
  __syncwarp();
  const uint64_t left = batch.rows - first, values = (left < 32 ? left : 32) * features;
  for (uint64_t at = lane; staged && at < values; at += 32)
    outputs.phi[first * features + at] = reinterpret_cast<float*>(tiles)[at];
  __syncwarp();  // mutation: the next rows' reduction meets before the tile is written; this orders what was read
}

// Where the table is read from.
enum Place { kShared, kMapped, kGlobal };

// phi[rows, features] of a batch. Dynamic shared memory: the first `shared_words` of the table, padded to 4 (with the class
// map if kShared, without if kMapped, none if kGlobal), two tiles per warp, then states[states_per_row * 32] per warp unless
// kGlobal; then `spare` has that many words for every warp of the grid. At most 256 threads, any grid.
template <Place kPlace>
DEV_FN void features_of(const uint32_t* words, uint32_t shared_words, uint32_t vocab, const Tokens& batch,
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
  const uint64_t warp_in_grid = uint64_t(blockIdx.x) * warps + warp;
  const uint32_t states_of_warp = outputs.states_per_row * 32;
  uint32_t* tiles = memory + table_words + warp * 2 * kTileWords;
  uint32_t* states = kPlace == kGlobal ? spare + warp_in_grid * states_of_warp
                                       : memory + table_words + warps * 2 * kTileWords + warp * states_of_warp;
  for (uint64_t first = warp_in_grid * 32; first < batch.rows; first += uint64_t(gridDim.x) * warps * 32)
    rows_of_warp(table, batch, first, outputs, tiles, states + lane);
}

#define FEATURES_KERNEL(name, place)                                                                                    \
  extern "C" __global__ void __launch_bounds__(256, 3)                                                                  \
  name(const uint32_t* words, uint32_t shared_words, uint32_t vocab, const uint32_t* tokens, const uint32_t* lengths,   \
       uint64_t rows, uint32_t longest, uint32_t eos, uint32_t features, uint32_t states_per_row, const float* custom,  \
       uint32_t customs, uint32_t* spare, float* phi, unsigned long long* status) {                                     \
    const Tokens batch{tokens, lengths, rows, longest, eos};                                                            \
    const FeatureOutputs outputs{features, states_per_row, customs, custom, phi, status};                                      \
    features_of<place>(words, shared_words, vocab, batch, outputs, spare);                                              \
  }
FEATURES_KERNEL(features_shared, kShared)
FEATURES_KERNEL(features_mapped, kMapped)
FEATURES_KERNEL(features_global, kGlobal)
EXPORT_KERNEL(features_shared)
EXPORT_KERNEL(features_mapped)
EXPORT_KERNEL(features_global)
