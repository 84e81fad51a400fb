//! Many words at once: the automaton of Aho and Corasick (1975).

use super::explore;

/// What marks a child that does not exist, while the trie is built.
const NONE: u32 = u32::MAX;

/// State n: the longest suffix of the text so far that begins a word.
pub(super) struct AhoCorasick {
    width: usize,
    /// The state after a symbol, `[S, symbols]`.
    next: Vec<u32>,
    /// The labels of the words that end here, `[S]`.
    pub ends: Vec<u32>,
}

impl AhoCorasick {
    /// The automaton of `words` over symbols below `symbols`; `None` where there would be too many states.
    pub fn new<W: IntoIterator<Item = u32>>(words: impl IntoIterator<Item = W>, symbols: usize) -> Option<Self> {
        AhoCorasick::labelled(words.into_iter().map(|word| (word, 1)), symbols)
    }

    /// The same of words with labels, each a set of bits.
    pub fn labelled<W: IntoIterator<Item = u32>>(
        words: impl IntoIterator<Item = (W, u32)>,
        symbols: usize,
    ) -> Option<Self> {
        let mut this = AhoCorasick { width: symbols, next: vec![NONE; symbols], ends: vec![0] };
        for (word, label) in words {
            let mut state = 0;
            for symbol in word {
                state = this.child(state, symbol as usize)?;
            }
            this.ends[state] |= label;
        }
        this.complete();
        Some(this)
    }

    fn child(&mut self, state: usize, symbol: usize) -> Option<usize> {
        let at = state * self.width + symbol;
        if self.next[at] == NONE {
            let fresh = u32::try_from(self.ends.len()).ok().filter(|&fresh| fresh < NONE)?;
            self.next[at] = fresh;
            self.next.extend(std::iter::repeat_n(NONE, self.width));
            self.ends.push(0);
        }
        Some(self.next[at] as usize)
    }

    /// Breadth first: where a state has no child, it goes where the state of its longest proper suffix goes.
    fn complete(&mut self) {
        let mut suffix = vec![0_u32; self.ends.len()];
        let mut queue = std::collections::VecDeque::from([0_usize]);
        while let Some(state) = queue.pop_front() {
            let shorter = suffix[state] as usize;
            self.ends[state] |= self.ends[shorter];
            for symbol in 0..self.width {
                let otherwise = if state == 0 { 0 } else { self.next[shorter * self.width + symbol] };
                let to = &mut self.next[state * self.width + symbol];
                if *to == NONE {
                    *to = otherwise;
                } else {
                    suffix[*to as usize] = otherwise;
                    queue.push_back(*to as usize);
                }
            }
        }
    }

    /// Number of symbols.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The state after a symbol, `[S, symbols]`.
    pub fn transitions(&self) -> &[u32] {
        &self.next
    }

    /// Whether a word ends in `state`.
    pub fn ends_in(&self, state: u32) -> bool {
        self.ends[state as usize] != 0
    }

    /// The state after `symbol`.
    pub fn step(&self, state: u32, symbol: usize) -> u32 {
        self.next[state as usize * self.width + symbol]
    }

    /// Next states and values of the texts that contain a word: the states in which one ends become a last one.
    pub fn containing(&self) -> (Vec<u32>, Vec<f32>) {
        let once = |state: u32| if self.ends_in(state) { NONE } else { state };
        let step = |state: u32, symbol: usize| if state == NONE { NONE } else { once(self.step(state, symbol)) };
        let (states, next) = explore(once(0), self.width, usize::MAX, step).expect("no limit");
        (next, states.iter().map(|&state| f32::from(u8::from(state == NONE))).collect())
    }
}
