//! Tests of the whole: engine cases, the oracle, guest boots.
//!
//! The crate holds what several test programs share; the programs are in `tests/` and `src/bin/`.

pub mod cases;
pub mod oracle;
pub mod sequences;

use engine::{Engine, EngineError, Setup};

/// Makes an engine.
pub type Make = fn(Setup) -> Result<Box<dyn Engine>, EngineError>;

/// The engines that are judged, by name as `ombra run --engine` has it.
pub const ENGINES: &[(&str, Make)] = &[("interpreter", interpreter), ("translator", translator)];

/// Makes the interpreter: the engine that the tests here judge.
///
/// # Errors
/// As [`interpreter::Interpreter::new`].
pub fn interpreter(setup: Setup) -> Result<Box<dyn Engine>, EngineError> {
    Ok(Box::new(interpreter::Interpreter::new(setup)?))
}

/// Makes the translator, so that it translates whatever it meets for the first time.
///
/// # Errors
/// As [`translator::Translator::new`].
pub fn translator(setup: Setup) -> Result<Box<dyn Engine>, EngineError> {
    let options = translator::Options { hot: 1, check_entries: true, ..translator::Options::default() };
    Ok(Box::new(translator::Translator::new(setup, options)?))
}

/// The translator, with translations that all look at their source each time they are entered.
///
/// # Errors
/// As [`translator::Translator::new`].
pub fn suspicious_translator(setup: Setup) -> Result<Box<dyn Engine>, EngineError> {
    let options = translator::Options { hot: 1, rewrites: 0, ..translator::Options::default() };
    Ok(Box::new(translator::Translator::new(setup, options)?))
}

/// Makes the translator whose virtual TLB loses what it holds at random, and has hardly any memory.
///
/// # Errors
/// As [`translator::Translator::new`].
pub fn chaotic_translator(setup: Setup) -> Result<Box<dyn Engine>, EngineError> {
    let options =
        translator::Options { hot: 1, chaos: true, check_entries: true, ..translator::Options::default() };
    Ok(Box::new(translator::Translator::new(setup, options)?))
}
