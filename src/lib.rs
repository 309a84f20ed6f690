//! placeholder
pub mod attack;
pub mod error;
pub mod model;

pub use error::{Error, Result};
