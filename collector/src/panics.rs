//! Panics, told without what they were about.
//!
//! A panic is a bug, and its message may quote the text that was at hand: an index inside a character does, up to 256 bytes of
//! it. So only its place is told, and messages that are constants of the program.

use std::panic::PanicHookInfo;

use log::error;
use tokio::task::JoinError;

/// Logs panics from now on, in place of the standard library's report.
pub fn log_places() {
    std::panic::set_hook(Box::new(|info| error!("{}", described(info))));
}

fn described(info: &PanicHookInfo<'_>) -> String {
    let place = info.location().map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
    // A message that was put together is a String, a constant is a &str.
    let message = info.payload().downcast_ref::<&'static str>().map_or_else(String::new, |message| format!(": {message}"));
    format!("internal error{place}{message}; please report it")
}

/// What is told of a panic that was caught.
pub const CAUGHT: &str = "internal error, see the log for its place";

/// Why a task has no result. Its own words would quote the message of a panic.
pub fn reason(error: &JoinError) -> &'static str {
    if error.is_panic() { CAUGHT } else { "the collector is stopping" }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_panic_is_told_by_its_place_and_constants_alone() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let before = std::panic::take_hook();
        let to = Arc::clone(&told);
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() == Some("told") {
                to.lock().unwrap().push(described(info));
            }
        }));
        let words = "the patient's näme".to_owned();
        let at = words.find('ä').unwrap() + 1;
        let told_thread = || std::thread::Builder::new().name("told".to_owned());
        let sliced = told_thread().spawn(move || words[..at].len()).unwrap().join();
        let constant = told_thread().spawn(|| panic!("a constant")).unwrap().join();
        std::panic::set_hook(before);
        assert!(sliced.is_err() && constant.is_err());
        let told = told.lock().unwrap();
        assert!(told.iter().all(|line| line.contains("panics.rs:") && !line.contains("patient")), "{told:?}");
        assert!(told.iter().any(|line| line.contains("a constant")) && told.len() == 2, "{told:?}");
    }

    #[tokio::test]
    async fn the_words_of_a_panic_are_no_reason() {
        let words = "words of a person".to_owned();
        let error = tokio::task::spawn_blocking(move || panic!("{words}")).await.unwrap_err();
        assert!(error.to_string().contains("words of a person"), "tokio quotes the message: {error}");
        assert!(!reason(&error).contains("words"));
    }
}
