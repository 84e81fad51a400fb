// features.cuh -- one warp takes the compiled feature table through 32 rows of tokens: what the kernels of features.cu do
// with a batch, and lstm_forward.cu with the rows that it has drawn.
//
// A lane owns a row, a warp 32 neighbouring rows. Rows are walked one token after the other, so a lane that read its own
// row would touch 32 cache lines per load, one per lane: 32 cycles of the L1 for 512 bytes, below the rate of the memory.
// Instead the warp copies tiles of 32 rows x 128 bytes of tokens to shared memory, 8 lanes per row, so that each line is
// read once and whole; two tiles per warp, the next in flight while this one is walked. A pitch of 36 words puts the
// lanes' 16-byte reads of their own rows into different banks. Tokens have 32 or 16 bits.
//
// Tokens become classes once, in the tile, after the spelled automata have seen them as they are; then each entry of the
// table is taken through the tile, its state held in registers meanwhile and between tiles in `states`, word k of a lane
// at states[32 k + lane]. Words that nothing else stands beside look up their classes on the way; where each token is its
// own class, nothing does. What is rare, a token outside the vocabulary or the end of a word, is asked for once for
// several tokens, so that the chain of look-ups has nothing in it but an addition each.
#pragma once
#include "common/device.cuh"
#include "common/status.cuh"

namespace features {
constexpr uint32_t kLine = 128, kPitch = 36, kTileWords = 32 * kPitch, kNone = ~0u, kEnds = 1u << 31;
// Entries but spelled ones walk so many tokens at a time, words so many without a branch.
constexpr uint32_t kStretch = 32, kGroup = 16;

// The words of src/features/table.rs.
enum Kind : uint32_t {
  kAutomaton, kLength, kSubstring, kEdit, kShift, kCount, kSpelled, kDistinct, kCustom, kCombine,
  kWords
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
// Whether each token is its own class: as many classes as tokens, numbered by first appearance.
DEV_FN bool own_classes(const Table& table) { return width(table) == table.vocab; }
DEV_FN Entry entry_of(const Table& table, uint32_t at) {
  const uint32_t* w = table.words + 4 + 8 * at;
  return {w[0], w[1], w[2], w[3], w[4], w[5], w[6]};
}

template <typename T> struct Tokens {
  const T* tokens;
  const uint32_t* lengths;
  uint64_t rows;
  uint32_t longest, eos;
};

// Starts the copy of the tile of 32 rows from `first` and of 128 bytes of tokens from `start` on; what does not exist is
// left as it is.
template <typename T> DEV_FN void stage(const Tokens<T>& batch, uint64_t first, uint32_t start, uint32_t* tile) {
  constexpr uint32_t kEach = 16 / sizeof(T);
  const uint32_t lane = threadIdx.x % 32, rows = uint32_t(min(batch.rows - first, uint64_t(32)));
  const T* tokens = batch.tokens + first * batch.longest + start;
  if (batch.longest % kEach == 0 && reinterpret_cast<uintptr_t>(batch.tokens) % 16 == 0) {
    const uint32_t row = lane / 8, part = lane % 8, left = start + part * kEach < batch.longest ? rows : 0;
    const T* from = tokens + uint64_t(row) * batch.longest + part * kEach;
    uint32_t* to = tile + row * kPitch + part * 4;
#pragma unroll
    for (uint32_t i = 0; i < 8; i++, from += 4 * uint64_t(batch.longest))
      if (4 * i + row < left) dev::cp_async16(to + 4 * i * kPitch, from);
  } else {
    for (uint32_t t = lane; t < kLine / sizeof(T) && start + t < batch.longest; t += 32)
#pragma unroll 8
      for (uint32_t r = 0; r < rows; r++)
        reinterpret_cast<T*>(tile + r * kPitch)[t] = tokens[uint64_t(r) * batch.longest + t];
  }
  dev::cp_async_commit();
}

// 16 bytes of tokens, or of their classes.
template <typename T> struct Sixteen {
  static constexpr uint32_t kEach = 16 / sizeof(T);
  uint32_t values[kEach];

  __device__ __forceinline__ void load(const T* from) {
    const uint4 four = *reinterpret_cast<const uint4*>(from);
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (uint32_t i = 0; i < kEach; i++)
      values[i] = sizeof(T) == 4 ? words[i % 4] : words[i / 2] >> (i % 2 * 16) & 0xFFFF;
  }
  __device__ __forceinline__ void store(T* to) const {
    uint32_t words[4] = {};
#pragma unroll
    for (uint32_t i = 0; i < kEach; i++) words[i * sizeof(T) / 4] |= values[i] << (sizeof(T) == 4 ? 0 : i % 2 * 16);
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  }
};

// Calls step(value) for the first `count` values of a lane's row of the tile.
template <typename T, typename Step> DEV_FN void for_values(const T* row, uint32_t count, Step step) {
  constexpr uint32_t kEach = Sixteen<T>::kEach;
  uint32_t at = 0;
  for (; at + kEach <= count; at += kEach) {
    Sixteen<T> sixteen;
    sixteen.load(row + at);
#pragma unroll
    for (uint32_t i = 0; i < kEach; i++) step(sixteen.values[i]);
  }
#pragma unroll 1
  for (; at < count; at++) step(uint32_t(row[at]));
}

// Whether one of the tokens is outside the vocabulary; it becomes 0.
template <uint32_t N> DEV_FN bool replace_unknown(const Table& table, uint32_t (&values)[N]) {
  uint32_t largest = values[0];
#pragma unroll
  for (uint32_t i = 1; i < N; i++) largest = max(largest, values[i]);
  if (largest < table.vocab) return false;
#pragma unroll
  for (uint32_t i = 0; i < N; i++) values[i] = values[i] < table.vocab ? values[i] : 0;
  return true;
}
template <uint32_t N> DEV_FN void look_up_classes(const Table& table, uint32_t (&values)[N]) {
#pragma unroll
  for (uint32_t i = 0; i < N; i++) values[i] = table.classes[values[i]];
}

// Tokens of a lane's row become classes; true where one is outside the vocabulary.
template <typename T> DEV_FN bool classify(const Table& table, T* row, uint32_t count) {
  constexpr uint32_t kEach = Sixteen<T>::kEach;
  const bool own = own_classes(table);
  bool bad = false;
  uint32_t at = 0;
  for (; at + kEach <= count; at += kEach) {
    Sixteen<T> sixteen;
    sixteen.load(row + at);
    const bool unknown = replace_unknown(table, sixteen.values);
    if (!own) look_up_classes(table, sixteen.values);
    if (!own || unknown) sixteen.store(row + at);
    bad |= unknown;
  }
#pragma unroll 1
  for (; at < count; at++) {
    uint32_t value[1] = {row[at]};
    bad |= replace_unknown(table, value);
    look_up_classes(table, value);
    row[at] = T(value[0]);
  }
  return bad;
}

// The longest suffix of the text so far that is a substring of the pattern lies in states[0] and has states[32] tokens;
// states[64] is the most so far.
template <typename T>
DEV_FN void walk_substring(const Table& table, const Entry& entry, const T* row, uint32_t count,
                           uint32_t* states) {
  const uint32_t *next = table.words + entry.first, *links = table.words + entry.second, classes = width(table);
  uint32_t state = states[0], matched = states[32], longest = states[64];
  for_values(row, count, [&](uint32_t c) {
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
template <typename T>
DEV_FN void walk_edit(const Table& table, const Entry& entry, const T* row, uint32_t count, uint32_t* states) {
  uint32_t up = 0, down = 0;
  for (uint32_t word = 0; word < entry.extent; word++) {
    const uint32_t* masks = table.words + entry.first + word;
    const uint32_t out = word + 1 == entry.extent ? (entry.size - 1) % 32 : 31;
    uint32_t &plus_at = states[(2 + 2 * word) * 32], &minus_at = states[(3 + 2 * word) * 32];
    uint32_t plus = plus_at, minus = minus_at, bit = 0, next_up = 0, next_down = 0;
    for_values(row, count, [&](uint32_t c) {
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
template <uint32_t W, typename T>
DEV_FN void walk_shift(const Table& table, const Entry& entry, const T* row, uint32_t count, bool begins,
                       uint32_t* states) {
  const uint32_t *masks = table.words + entry.first, *starts = table.words + entry.second;
  uint32_t bits[W], found[W], start[W], always[W], keep[W];
#pragma unroll
  for (uint32_t w = 0; w < W; w++) {
    bits[w] = states[32 * w], found[w] = states[32 * (W + w)];
    always[w] = starts[w], keep[w] = starts[2 * W + w];
    start[w] = begins ? always[w] | starts[W + w] : always[w];
  }
  for_values(row, count, [&](uint32_t c) {
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
template <typename T>
DEV_FN void walk_count(const Table& table, const Entry& entry, const T* row, uint32_t count, uint32_t* states) {
  const uint32_t* next = table.words + entry.first;
  uint32_t state = states[0], ended = states[32];
  for_values(row, count, [&](uint32_t c) {
    const uint32_t to = next[state + c];
    ended += to >> 31;
    state = to & ~kEnds;
  });
  states[0] = state, states[32] = ended;
}

// What an automaton of words finds in a lane's row: classes, tokens whose classes it looks up, or that are their own.
enum Column { kClasses, kTokens, kOwn };

// The first `count` of a group of values, all of it if kWhole; true where one is outside the vocabulary.
template <Column kColumn, bool kWhole, typename T>
DEV_FN bool load_group(const Table& table, const T* row, uint32_t count, uint32_t (&values)[kGroup]) {
#pragma unroll
  for (uint32_t at = 0; at < kGroup; at += Sixteen<T>::kEach) {
    Sixteen<T> sixteen;
    sixteen.load(row + at);
#pragma unroll
    for (uint32_t i = 0; i < Sixteen<T>::kEach; i++)
      values[at + i] = kWhole || at + i < count ? sixteen.values[i] : 0;
  }
  const bool bad = kColumn != kClasses && replace_unknown(table, values);
  if (kColumn == kTokens) look_up_classes(table, values);
  return bad;
}

// A group of the automaton of words; where a word ends, rarely, which features it belongs to.
template <Column kColumn, bool kWhole, typename T>
DEV_FN bool walk_group(const Table& table, const Entry& entry, const T* row, uint32_t count, uint32_t& state,
                       uint32_t& found) {
  uint32_t values[kGroup], marks = 0;
  const bool bad = load_group<kColumn, kWhole>(table, row, count, values);
  const uint32_t* next = table.words + entry.first;
#pragma unroll
  for (uint32_t i = 0; i < kGroup; i++) {
    const uint32_t to = next[(state + values[i]) & ~kEnds];
    const bool steps = kWhole || i < count;
    state = steps ? to : state;
    values[i] = steps ? to : 0;
    marks |= values[i];
  }
  if (marks & kEnds) {
    const uint32_t ceiling = ~0u / width(table) + 1;  // of 2^32 / width: exact quotients of its multiples
#pragma unroll
    for (uint32_t i = 0; i < kGroup; i++)
      if (values[i] & kEnds) found |= table.words[entry.second + __umulhi(values[i] & ~kEnds, ceiling)];
  }
  return bad;
}

// states: state, marked where a word ends, and what was found. True where a token is outside the vocabulary.
template <Column kColumn, typename T>
DEV_FN bool walk_words(const Table& table, const Entry& entry, const T* row, uint32_t count, uint32_t* states) {
  uint32_t state = states[0], found = states[32], at = 0;
  bool bad = false;
  for (; at + kGroup <= count; at += kGroup)
    bad |= walk_group<kColumn, true>(table, entry, row + at, kGroup, state, found);
  if (at < count) bad |= walk_group<kColumn, false>(table, entry, row + at, count - at, state, found);
  states[0] = state, states[32] = found;
  return bad;
}

// An automaton over the symbols of each token; `row` holds tokens, not classes. One outside the vocabulary has none.
template <typename T>
DEV_FN void walk_spelled(const Table& table, const Entry& entry, const T* row, uint32_t count, uint32_t* states) {
  const uint32_t *next = table.all + entry.first, *ends = table.all + entry.third, *symbols = ends + table.vocab;
  uint32_t state = states[0];
  for_values(row, count, [&](uint32_t token) {
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
    case kCount:
    case kWords: return 2;
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

// Whether the only entry that walks classes is one of words.
DEV_FN bool only_words(const Table& table) {
  uint32_t words = 0, others = 0;
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    words += entry.kind == kWords;
    others += entry.kind != kWords && entry.kind != kSpelled && state_words(entry) > 0;
  }
  return words == 1 && others == 0;
}

// Takes that entry through `count` tokens; true where one is outside the vocabulary.
template <typename T> DEV_FN bool walk_only_words(const Table& table, const T* row, uint32_t count, uint32_t* states) {
  bool bad = false;
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    if (entry.kind == kWords)
      bad = own_classes(table) ? walk_words<kOwn>(table, entry, row, count, states)
                               : walk_words<kTokens>(table, entry, row, count, states);
    states += 32 * state_words(entry);
  }
  return bad;
}

// Takes the spelled automata through `count` tokens.
template <typename T> DEV_FN void walk_tokens(const Table& table, const T* row, uint32_t count, uint32_t* states) {
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    if (entry.kind == kSpelled) walk_spelled(table, entry, row, count, states);
    states += 32 * state_words(entry);
  }
}

// Takes every other entry through `count` classes, at most 32, the first of the row where it `begins`.
template <typename T>
DEV_FN void walk(const Table& table, const T* row, uint32_t count, bool begins, uint32_t* states) {
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    if (entry.kind == kAutomaton) {  // states are stored times the number of classes
      const uint32_t* next = table.words + entry.first;
      uint32_t state = states[0];
      for_values(row, count, [&](uint32_t c) { state = next[state + c]; });
      states[0] = state;
    } else if (entry.kind == kWords) {
      walk_words<kClasses>(table, entry, row, count, states);
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
template <typename T> struct FinishedRow {
  const T* tokens;
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
template <typename T> DEV_FN float distinct(const FinishedRow<T>& row) {
  uint32_t fresh = 0;
  for (uint32_t at = 0; at < row.content; at++) {
    uint32_t before = 0;
    while (before < at && row.tokens[before] != row.tokens[at]) before++;
    fresh += before == at;
  }
  return float(fresh) / float(row.content > 0 ? row.content : 1);
}

template <typename T> DEV_FN float combined(const Table& table, const Entry& entry, const FinishedRow<T>& row) {
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
template <typename T>
DEV_FN float value_of(const Table& table, const Entry& entry, const uint32_t* states, const FinishedRow<T>& row) {
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

// Bit k of `found` is the value of target k; four targets are read before the first is written.
template <typename T>
DEV_FN void write_bits(const FinishedRow<T>& row, const uint32_t* targets, uint32_t count, uint32_t found) {
  for (uint32_t k = 0; k < count; k += 4) {
    uint32_t to[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) to[i] = targets[min(k + i, count - 1)];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
      if (k + i < count) row.value(to[i]) = float(found >> (k + i) & 1);
  }
}

// Writes the features of a row.
template <typename T> DEV_FN void finish(const Table& table, const uint32_t* states, const FinishedRow<T>& row) {
  for (uint32_t at = 0; at < entries(table); at++) {
    const Entry entry = entry_of(table, at);
    const uint32_t* targets = table.words + entry.targets;
    if (entry.kind == kAutomaton) {
      const uint32_t* values = table.words + entry.second + states[0] / width(table) * entry.extent;
      for (uint32_t k = 0; k < entry.extent; k++) row.value(targets[k]) = __uint_as_float(values[k]);
    } else if (entry.kind == kWords) {
      write_bits(row, targets, entry.extent, states[32]);
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

// `rows` rows of `columns` values, `pitch` apart, by a warp to where there are no gaps.
DEV_FN void copy_rows(const float* from, uint32_t pitch, uint32_t rows, uint32_t columns, float* to) {
  if (columns == 0) return;
  uint32_t row = threadIdx.x % 32 / columns, column = threadIdx.x % 32 % columns;
  const uint32_t down = 32 / columns, right = 32 % columns;
#pragma unroll 4
  for (uint32_t at = threadIdx.x % 32; at < rows * columns; at += 32) {
    to[at] = from[row * pitch + column];
    row += down, column += right;
    if (column >= columns) row++, column -= columns;
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

// The 32 rows from `first` on, by one warp. tiles: two of them. `fused`: only_words.
template <typename T>
DEV_FN void rows_of_warp(const Table& table, bool fused, const Tokens<T>& batch, uint64_t first,
                         const FeatureOutputs& outputs, uint32_t* tiles, uint32_t* states) {
  constexpr uint32_t kTile = kLine / sizeof(T);
  const uint32_t lane = threadIdx.x % 32, features = outputs.features;
  const uint64_t row = first + lane;
  uint32_t length = row < batch.rows ? batch.lengths[row] : 0, content = 0;
  bool bad = row < batch.rows && (length == 0 || length > batch.longest);
  if (bad) length = 0;
  const uint32_t count_tiles = (__reduce_max_sync(~0u, length) + kTile - 1) / kTile;
  start(table, states);
  stage(batch, first, 0, tiles);
  for (uint32_t k = 0; k < count_tiles; k++) {
    T* mine = reinterpret_cast<T*>(tiles + k % 2 * kTileWords + lane * kPitch);
    stage(batch, first, k + 1 < count_tiles ? (k + 1) * kTile : batch.longest, tiles + (k + 1) % 2 * kTileWords);
    dev::cp_async_wait<1>();
    __syncwarp();  // the other lanes' copies
    uint32_t count = length > k * kTile ? min(length - k * kTile, kTile) : 0;
    if (count && k * kTile + count == length && mine[count - 1] == batch.eos) count--;
    walk_tokens(table, mine, count, states);
    if (fused) {
      bad |= walk_only_words(table, mine, count, states);
    } else {
      bad |= classify(table, mine, count);
      for (uint32_t at = 0; at < count; at += kStretch)
        walk(table, mine + at, min(count - at, kStretch), k == 0 && at == 0, states);
    }
    content += count;
    __syncwarp();  // before the tile is written again
  }
  dev::cp_async_wait<0>();
  if (bad) note_fault(outputs.status, row, kBadRow);
  // Rows of few features leave through the tile, as whole lines; an odd pitch puts them into different banks.
  const uint32_t pitch = features | 1;
  const bool staged = pitch <= 2 * kPitch;
  float* out = staged ? reinterpret_cast<float*>(tiles) + lane * pitch : outputs.phi + row * features;
  __syncwarp();
  if (row < batch.rows) {
    uint32_t* hidden = states + 32 * (outputs.states_per_row - table.words[2]);
    const FinishedRow<T> finished{batch.tokens + row * batch.longest, length, content, batch.longest,
                       outputs.custom + row * outputs.customs, out, hidden, features};
    if (!bad) finish(table, states, finished);
    for (uint32_t f = 0; bad && f < features; f++) out[f] = NAN;
  }
  __syncwarp();
  if (staged) {
    const uint32_t rows = uint32_t(min(batch.rows - first, uint64_t(32)));
    copy_rows(reinterpret_cast<float*>(tiles), pitch, rows, features, outputs.phi + first * features);
  }
  __syncwarp();  // mutation: the next rows' reduction meets before the tile is written; this orders what was read
}

// What a kernel needs to make features of the rows that it has drawn itself; no `phi`, no features. No closures.
struct DrawnRows {
  const uint32_t* words;  // the table
  float* phi;             // [rows, features]
  uint32_t shared_words;  // of the table, its first, that have room in shared memory
  uint32_t features, states_per_row, unused;
};

// phi of the rows [first, batch.rows) that the block has drawn, at most 32 for each of its warps: by all its threads, after
// a barrier behind the last token. memory: shared_words, padded to 4, then for each 32 rows two tiles and
// states[states_per_row * 32].
DEV_FN void of_drawn_rows(const DrawnRows& drawn, const Tokens<uint32_t>& batch, uint64_t first, uint32_t vocab,
                          uint32_t* memory, unsigned long long* status) {
  for (uint32_t at = threadIdx.x; at < drawn.shared_words; at += blockDim.x) memory[at] = drawn.words[at];
  __syncthreads();
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, map = drawn.words[3];
  if (first + 32 * warp >= batch.rows) return;
  const Table table{drawn.shared_words > 0 ? memory : drawn.words,
                    (drawn.shared_words > map ? memory : drawn.words) + map, drawn.words, vocab};
  uint32_t* tiles = memory + (drawn.shared_words + 3) / 4 * 4 + warp * (2 * kTileWords + 32 * drawn.states_per_row);
  const FeatureOutputs outputs{drawn.features, drawn.states_per_row, 0, nullptr, drawn.phi, status};
  rows_of_warp(table, only_words(table), batch, first + 32 * warp, outputs, tiles, tiles + 2 * kTileWords + lane);
}
}  // namespace features
