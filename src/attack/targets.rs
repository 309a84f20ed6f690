//! Targets: which class each sample is led to.

/// What the attack aims at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Untargeted: any class but the label.
    None,
    /// Uniform over the classes that are not the label, by the sample's own random number.
    Random,
    /// (label + 1) mod K.
    Next,
    /// The class, not the label, with the lowest clean logit; ties to the lowest index.
    LeastLikely,
    /// The class, not the label, with the highest clean logit; ties to the lowest index.
    Second,
    /// One class a sample; −1 attacks that sample untargeted.
    Classes(Vec<i64>),
}
