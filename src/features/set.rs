//! Named features over one space.

use std::sync::Arc;

use super::build::{Builder, Refusal, Texts, no_spelling};
use super::{Automaton, Classes, Feature, Spelling};
use crate::error::{Error, Result};
use crate::tokens::{Space, Vocab};

/// A threshold is tried on automata of so many states; larger ones are believed.
const TRIED: usize = 1 << 14;

/// Named features over one space.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureSet {
    space: Space,
    spelling: Option<Arc<Spelling>>,
    names: Vec<String>,
    features: Vec<Feature>,
}

impl FeatureSet {
    /// No features yet.
    pub fn new(space: Space) -> Self {
        FeatureSet { space, spelling: None, names: Vec::new(), features: Vec::new() }
    }

    /// No features yet, over the text of a vocabulary's sequences of up to `longest` tokens.
    ///
    /// ```
    /// use ebm_dpg::features::{Feature, FeatureSet};
    /// use ebm_dpg::tokens::{Unit, Vocab};
    ///
    /// let vocab = Vocab::from_symbols(["un", "believ", "able"], Unit::Words)?;
    /// let features = FeatureSet::over(&vocab, 10)?.with("vowels", Feature::Regex("[aeiou]{2}".into()))?;
    /// assert_eq!(features.len(), 1);
    /// # Ok::<(), ebm_dpg::Error>(())
    /// ```
    ///
    /// # Errors
    /// `longest` of zero.
    pub fn over(vocab: &Vocab, longest: u32) -> Result<Self> {
        FeatureSet::new(vocab.space(longest)?).spelled(Spelling::of(vocab))
    }

    /// The same features, and what each token is in text: what [`Feature::Regex`] and [`Feature::AnyText`] look at.
    ///
    /// # Errors
    /// A spelling of another number of tokens.
    pub fn spelled(self, spelling: Spelling) -> Result<Self> {
        spelling.check(&self.space)?;
        Ok(FeatureSet { spelling: Some(Arc::new(spelling)), ..self })
    }

    /// This set and one more feature, the last in order.
    ///
    /// ```
    /// use ebm_dpg::features::{Feature, FeatureSet};
    /// use ebm_dpg::tokens::Space;
    ///
    /// let space = Space::new(2, 31)?;
    /// let features = FeatureSet::new(space)
    ///     .with("motif", Feature::Contains(vec![1, 0, 1]))?
    ///     .with("first bit", Feature::StartsWith(vec![1]))?
    ///     .with("neither", !(Feature::Contains(vec![1, 0, 1]) | Feature::StartsWith(vec![1])))?;
    /// assert_eq!(features.len(), 3);
    /// assert!(features.with("empty", Feature::Contains(vec![])).is_err());
    /// # Ok::<(), ebm_dpg::Error>(())
    /// ```
    ///
    /// # Errors
    /// A pattern that is empty or longer than the longest sequence, a token that is no content token, a modulus or
    /// digits out of range, a regular expression that is none (where is said), a feature of the text without a spelling,
    /// a threshold that no sequence reaches.
    pub fn with(mut self, name: impl Into<String>, feature: Feature) -> Result<Self> {
        let name = name.into();
        feature.check(&self.space, &name)?;
        let mut result = Ok(());
        feature.walk(&mut |part| {
            if part.is_text() && self.spelling.is_none() {
                result = Err(no_spelling(&name));
            } else if let Feature::AtLeast { .. } = part
                && result.is_ok()
            {
                result = self.check_reached(part, &name);
            }
        });
        result?;
        self.names.push(name);
        self.features.push(feature);
        Ok(self)
    }

    /// `Ok` where some sequence meets a threshold, as far as a small automaton can tell.
    fn check_reached(&self, feature: &Feature, name: &str) -> Result<()> {
        let mut texts = Texts::default();
        // Too large an automaton is no mistake yet.
        if texts.add(&self.space, self.spelling.as_deref(), feature, name, TRIED).is_err() {
            return Ok(());
        }
        let Some(classes) = self.classes_of([feature], &texts, TRIED) else { return Ok(()) };
        let builder = Builder { space: self.space, classes: &classes, texts: &texts, limit: TRIED };
        match (builder.automaton(feature), feature) {
            (Ok(automaton), Feature::AtLeast { value, .. }) if !automaton.reaches(|values| values[0] == 1.0) => {
                let what = format!("threshold of feature '{name}'");
                Err(Error::argument(what, "one that some sequence reaches", value))
            }
            _ => Ok(()),
        }
    }

    /// Number of features F.
    pub fn len(&self) -> usize {
        self.features.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// The names, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The features, in order.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// The space of the sequences.
    pub fn space(&self) -> Space {
        self.space
    }

    /// The text of the tokens, where it is known.
    pub fn spelling(&self) -> Option<&Spelling> {
        self.spelling.as_deref()
    }

    /// The same space and spelling, and only the features `which`. Panics where there is no such feature.
    pub fn subset(&self, which: &[usize]) -> FeatureSet {
        FeatureSet {
            space: self.space,
            spelling: self.spelling.clone(),
            names: which.iter().map(|&at| self.names[at].clone()).collect(),
            features: which.iter().map(|&at| self.features[at].clone()).collect(),
        }
    }

    /// Whether feature `at` can be part of [`FeatureSet::automaton`]. Panics where there is no such feature.
    pub fn is_automaton(&self, at: usize) -> bool {
        self.features[at].is_automaton()
    }

    /// The minimised product automaton of the features `which`; output k of a state is the value of feature
    /// `which[k]`.
    ///
    /// `limit` bounds the states of each automaton on the way: the features are multiplied in one after the other, only
    /// reachable states count, and the product is minimised after each.
    ///
    /// # Errors
    /// No such feature, a feature that is no automaton, or the feature that takes the product over the limit.
    pub fn automaton(&self, which: &[usize], limit: usize) -> Result<Automaton> {
        let mut texts = Texts::default();
        for &at in which {
            let Some(feature) = self.features.get(at) else {
                return Err(Error::argument("feature", format!("an index below {}", self.len()), at));
            };
            texts.add(&self.space, self.spelling(), feature, &self.names[at], limit)?;
        }
        let chosen = which.iter().map(|&at| &self.features[at]);
        let classes = self.classes_of(chosen, &texts, usize::MAX).expect("no limit");
        let builder = Builder { space: self.space, classes: &classes, texts: &texts, limit };
        let mut product = Automaton::unit(self.space, classes.clone());
        for &at in which {
            let name = &self.names[at];
            let too_large = || {
                let what = format!("automaton with feature '{name}'");
                Error::argument(what, format!("at most {limit} states"), "more")
            };
            let one = builder.automaton(&self.features[at]).map_err(|refusal| match refusal {
                Refusal::None(kind) => Error::argument(format!("feature '{name}'"), "one that is an automaton", kind),
                Refusal::TooLarge => too_large(),
            })?;
            product = product.product(&one, limit).ok_or_else(too_large)?;
        }
        Ok(product)
    }

    /// The token classes that `features` and their parts share; `None` where they are more than `most`.
    pub(super) fn classes_of<'a>(
        &self,
        features: impl IntoIterator<Item = &'a Feature>,
        texts: &Texts,
        most: usize,
    ) -> Option<Classes> {
        let (mut named, mut of_text) = (Vec::new(), Vec::new());
        for feature in features {
            feature.walk(&mut |part| {
                named.extend(part.named_tokens());
                of_text.extend(part.is_text().then_some(part));
            });
        }
        let classes = Classes::new(&self.space, named);
        let classes = (classes.len() <= most).then_some(classes)?;
        of_text.into_iter().try_fold(classes, |classes, part| texts.get(part).refine(&classes, most))
    }
}
