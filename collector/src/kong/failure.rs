//! Why a command could not do what it was asked for.

/// What went wrong, and what to do about it. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    /// What went wrong, in one line.
    pub what: String,
    /// Further lines: the cause, and how to mend it.
    pub advice: Vec<String>,
    /// The command was used in a wrong way.
    pub is_misuse: bool,
}

/// What a step gives, or why it could not.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// Something failed.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), advice: Vec::new(), is_misuse: false }
    }

    /// Somebody asked for what does not exist.
    pub fn misuse(what: impl Into<String>) -> Self {
        Self { is_misuse: true, ..Self::new(what) }
    }

    /// With a further line.
    pub fn advise(mut self, line: impl Into<String>) -> Self {
        self.advice.push(line.into());
        self
    }
}
