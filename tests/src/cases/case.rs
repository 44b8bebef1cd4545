//! The format of case files.
//!
//! A file holds cases, each a run of directives and the text that GNU `as` makes of it (Intel syntax, in the mode's code
//! size). A directive is a line that starts with `#:`; to the assembler it is a comment.
//!
//! ```text
//! #: case    a MOV to SS whose RPL isn't CPL raises #GP with the selector
//! #: manual  SDM 2B MOV
//! #: mode    flat32
//! #: ends    #GP(DATA32) at fault
//! #: expect  ax = DATA32 + 3, ss = DATA32
//!         mov     ax, DATA32 + 3
//! fault:  mov     ss, ax
//! ```
//!
//! | directive | what |
//! |---|---|
//! | `case SENTENCE` | starts a case |
//! | `manual SECTION` | where hardware's behaviour is described; required |
//! | `mode WORLD [user]` | `real`, `v86`, `flat16`, `flat32`, `paged32`, `pae`, `long`, `long5`, `compat`; see `environment.rs` |
//! | `set REGISTER = VALUE, ..` | before the start; also `|=` and `&=` |
//! | `byte`, `word`, `dword`, `qword ADDRESS = VALUE ..` | memory before the start |
//! | `pte`, `pde`, `pdpte`, `pml4e`, `pml5e LINEAR = VALUE` | a paging entry before the start; also `|=` and `&=` |
//! | `supervisor FROM .. TO` | pages that ring 3 may not touch |
//! | `gdt`, `ldt SELECTOR = KIND [FIELD=VALUE] [WORD] ..` | a descriptor; kinds and words in `setup.rs` |
//! | `gate VECTOR = KIND SELECTOR:OFFSET ..` | an IDT entry |
//! | `tss32`, `tss16 ADDRESS: FIELD=VALUE ..` | a task state segment |
//! | `port NUMBER = VALUE` | what reads of the port give (all ones otherwise) |
//! | `on-halt nmi`, `on-halt interrupt VECTOR` | what wakes the first HLT or MWAIT |
//! | `on-halt store ADDRESS = VALUE` | a byte that a device writes to memory then |
//! | `budget COUNT` | instructions before the case counts as endless |
//! | `ends halt [at LABEL]` | the default: a HLT of the case's own |
//! | `ends #XX[(CODE)] [at LABEL]` | a handler nobody asked for was reached, with LABEL as return address |
//! | `ends interrupt VECTOR [at LABEL]` | the same without an error code |
//! | `ends shutdown`, `ends endless` | a triple fault; the budget is used up |
//! | `expect LEFT = RIGHT, ..` | two expressions on the final state that must be equal; the names are in `judge.rs` |
//!
//! Cases are run whole and in steps of one instruction, which must come to the same state.

use super::environment::Mode;
use super::expression::split_outside;

/// One case, as its file has it.
#[derive(Clone, Debug)]
pub struct Case {
    /// File and line of its first directive.
    pub place: String,
    /// Its name, a sentence.
    pub name: String,
    /// The section of the manual that it follows.
    pub manual: String,
    pub(super) mode: Mode,
    pub(super) setup: Vec<Setting>,
    pub(super) ends: String,
    pub(super) expect: Vec<(String, String)>,
    pub(super) budget: u64,
    pub(super) text: String,
    pub(super) first_line: usize,
}

/// One directive that changes the initial state.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) line: usize,
    pub(super) directive: String,
    pub(super) rest: String,
}

/// Instructions that a case may use by default.
const BUDGET: u64 = 20_000;

const SETTINGS: &[&str] = &[
    "set",
    "byte",
    "word",
    "dword",
    "qword",
    "pte",
    "pde",
    "pdpte",
    "pml4e",
    "pml5e",
    "supervisor",
    "gdt",
    "ldt",
    "gate",
    "tss16",
    "tss32",
    "port",
    "on-halt",
];

/// All cases of a file.
///
/// # Errors
/// What is wrong with the file, with its line.
pub fn parse(file: &str, text: &str) -> Result<Vec<Case>, String> {
    let mut cases: Vec<Case> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let complain = |what: &str| format!("{file}:{number}: {what}");
        let Some(directive) = line.strip_prefix("#:") else {
            match cases.last_mut() {
                Some(case) => {
                    case.text.push_str(line);
                    case.text.push('\n');
                }
                None if line.trim().is_empty() || line.starts_with('#') => {}
                None => return Err(complain("text before the first `#: case`")),
            }
            continue;
        };
        let directive = directive.trim();
        let (word, rest) = directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
        let rest = rest.trim().to_owned();
        if word == "case" {
            cases.push(Case {
                place: format!("{file}:{number}"),
                name: rest,
                manual: String::new(),
                mode: Mode::parse("flat32")?,
                setup: Vec::new(),
                ends: "halt".to_owned(),
                expect: Vec::new(),
                budget: BUDGET,
                text: "\n".to_owned(),
                first_line: number,
            });
            continue;
        }
        let Some(case) = cases.last_mut() else {
            return Err(complain("a directive before the first `#: case`"));
        };
        case.text.push('\n');
        match word {
            "manual" => case.manual = rest,
            "mode" => case.mode = Mode::parse(&rest).map_err(|error| complain(&error))?,
            "ends" => case.ends = rest,
            "budget" => case.budget = rest.parse().map_err(|_| complain("a budget is a decimal number"))?,
            "expect" => {
                for part in split_outside(&rest, ',') {
                    let Some((left, right)) = part.split_once('=') else {
                        return Err(complain("`expect` wants LEFT = RIGHT"));
                    };
                    case.expect.push((left.trim().to_owned(), right.trim().to_owned()));
                }
            }
            word if SETTINGS.contains(&word) => {
                case.setup.push(Setting { line: number, directive: word.to_owned(), rest });
            }
            other => return Err(complain(&format!("no directive is called `{other}`"))),
        }
    }
    for case in &cases {
        if case.manual.is_empty() {
            return Err(format!("{}: `#: manual` is missing", case.place));
        }
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_split_into_its_cases() {
        let text =
            "# About.\n#: case one\n#: manual A\n nop\n#: case two\n#: manual B\n#: mode long user\n hlt\n";
        let cases = parse("f.s", text).expect("a sound file");
        assert_eq!(cases.len(), 2);
        assert_eq!((cases[1].name.as_str(), cases[1].place.as_str()), ("two", "f.s:5"));
        assert!(cases[0].text.contains("nop") && !cases[0].text.contains("hlt"));
        assert!(cases[1].mode.user);
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        for (text, line) in [
            ("nop\n", "f.s:1"),
            ("#: case one\n#: manual A\n#: colour red\n", "f.s:3"),
            ("#: case one\n#: manual A\n#: mode unreal\n", "f.s:3"),
            ("#: case one\n", "f.s:1"),
            ("#: mode long\n", "f.s:1"),
        ] {
            let error = parse("f.s", text).expect_err(text);
            assert!(error.starts_with(line), "{error}");
        }
    }
}
