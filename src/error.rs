//! The one error type: every failure names its place, and carries the exit code that the program ends with.

/// What can go wrong, by who can mend it. Every message names the place: a layer, a tensor, a file, a sample.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request that makes no sense whatever the model and the data are (a negative eps, an unknown method).
    #[error("{0}")]
    Usage(String),
    /// Weights or layers that cannot be used. `place` names the file, tensor or layer.
    #[error("model: {place}: {detail}")]
    Model {
        /// File, tensor or layer.
        place: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Images, labels or targets that cannot be used. `place` names the file or the argument.
    #[error("data: {place}: {detail}")]
    Data {
        /// File, record or argument.
        place: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No adapter at all, or none of the name asked for.
    #[error("{0}")]
    NoAdapter(String),
    /// The device has too little memory, or the plan does not fit its limits even with one sample.
    #[error("out of memory: {what} needs {bytes} bytes on the device ({limit})")]
    OutOfMemory {
        /// What was being allocated.
        what: String,
        /// How much it asked for.
        bytes: u64,
        /// The limit that was met.
        limit: String,
    },
    /// The device went away, or did not answer in time. The context is of no more use; a new one can be made.
    #[error("device lost: {0}")]
    DeviceLost(String),
    /// NaN or infinity arose in a sample while running.
    #[error("sample {sample}: not finite: {stage}")]
    NonFinite {
        /// Index of the first such sample.
        sample: usize,
        /// Where it was noticed.
        stage: String,
    },
    /// An output that cannot be written.
    #[error("output: {place}: {detail}")]
    Output {
        /// File or folder.
        place: String,
        /// What the system said.
        detail: String,
    },
    /// A threshold that the user set was not met. What was found has been told already.
    #[error("{0}")]
    Threshold(String),
    /// The GPU library refused something it should not have been given: a bug in this crate.
    #[error("internal error (please report it): {0}")]
    Internal(String),
    /// The caller's progress callback asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    pub(crate) fn model(place: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Model { place: place.into(), detail: detail.into() }
    }

    pub(crate) fn data(place: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::Data { place: place.into(), detail: detail.into() }
    }

    /// The same error, with what was asked for where the device did not say.
    pub(crate) fn needing(self, needed: u64) -> Self {
        match self {
            Error::OutOfMemory { what, bytes: 0, limit } => Error::OutOfMemory { what, bytes: needed, limit },
            other => other,
        }
    }

    /// The same error with `file` put before the place of a [`Error::Model`] or [`Error::Data`] (`file: place`); any
    /// other error is left alone. For callers that read the bytes themselves.
    pub fn in_file(self, file: &str) -> Self {
        match self {
            Error::Model { place, detail } => Error::Model { place: format!("{file}: {place}"), detail },
            Error::Data { place, detail } => Error::Data { place: format!("{file}: {place}"), detail },
            other => other,
        }
    }

    /// The program's exit code for this error: 1 a threshold that was not met, 2 usage, 3 model or data, 4 no adapter,
    /// 5 memory, 6 device lost, 7 not finite, 8 output, 130 cancelled (Ctrl-C, as shells give it).
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Threshold(_) => 1,
            Error::Usage(_) => 2,
            Error::Model { .. } | Error::Data { .. } => 3,
            Error::NoAdapter(_) => 4,
            Error::OutOfMemory { .. } => 5,
            Error::DeviceLost(_) | Error::Internal(_) => 6,
            Error::NonFinite { .. } => 7,
            Error::Output { .. } => 8,
            Error::Cancelled => 130,
        }
    }
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
