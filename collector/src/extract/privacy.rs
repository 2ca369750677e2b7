//! What of a conversation is not stored: all of it for some consumers and routes, and parts of it by their form.
//!
//! Applies to what users wrote and the model answered, in columns and in the bodies of `raw_log`; [`super::redact`] does the same
//! for credentials in what Kong says about a call. By default only keys are masked: an audit log is there to be read.
//!
//! Invariants: a pattern sees whole texts, never the JSON around them, so that nothing it matches can break a row. Every pattern
//! takes time linear in the text (the crate `regex` has no backtracking), whatever an operator or a user writes.
//!
//! Not here: entries that wait in the spool or were rejected. They are kept as they came, without credentials, because only
//! what is whole can become a row later.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result, bail};
use memchr::memmem::Finder;
use regex::Regex;

use crate::call::Call;

/// What is masked by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// API keys: sk- and at least 16 letters and digits
    Key,
    /// Addresses of e-mail
    Email,
    /// Mobile numbers of mainland China, with or without 86 and blanks
    Mobile,
    /// Resident identity numbers of China, 18 digits with a right check digit
    ResidentId,
    /// Bank cards: 13 to 19 digits, also in groups, with a right check digit (Luhn)
    BankCard,
}

/// Forms by their names, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forms(pub Vec<Form>);

impl std::str::FromStr for Forms {
    type Err = String;

    fn from_str(names: &str) -> Result<Self, String> {
        let of_name = |name: &str| {
            ALL.into_iter()
                .find(|form| form.name() == name)
                .ok_or_else(|| format!("there is no form {name}; there are {}", ALL.map(Form::name).join(", ")))
        };
        names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(of_name).collect::<Result<_, _>>().map(Self)
    }
}

/// Where two fit, the first one names it: a resident number may pass for a card.
const ALL: [Form; 5] = [Form::Key, Form::Email, Form::ResidentId, Form::Mobile, Form::BankCard];

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Email => "email",
            Self::Mobile => "mobile",
            Self::ResidentId => "resident-id",
            Self::BankCard => "bank-card",
        }
    }

    /// Boundaries are those of ASCII: in Chinese nothing stands between a word and a number.
    fn pattern(self) -> &'static str {
        match self {
            Self::Key => r"(?-u:\b)sk-[A-Za-z0-9_-]{16,}",
            Self::Email => r"(?-u:\b)[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?-u:\b)",
            Self::Mobile => r"(?-u:\b)(?:(?:00)?86[ -]?)?1[3-9][0-9](?:[0-9]{8}|[ -][0-9]{4}[ -][0-9]{4})(?-u:\b)",
            Self::ResidentId => {
                r"(?-u:\b)[1-9][0-9]{5}(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9Xx](?-u:\b)"
            }
            Self::BankCard => {
                r"(?-u:\b)(?:[2-69][0-9]{12,18}|[2-69][0-9]{3}(?:[ -][0-9]{4}){2,3}[ -][0-9]{1,7}|[2-69][0-9]{3}[ -][0-9]{6}[ -][0-9]{5}|[2-69][0-9]{5}[ -][0-9]{13})(?-u:\b)"
            }
        }
    }

    /// Whether a text can hold one at all: cheaper than the pattern. JSON writes what is looked for as any text does.
    fn is_worth_a_look(self, text: &str) -> bool {
        static KEY: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"sk-"));
        match self {
            Self::Key => KEY.find(text.as_bytes()).is_some(),
            Self::Email => memchr::memchr(b'@', text.as_bytes()).is_some(),
            Self::Mobile | Self::ResidentId | Self::BankCard => true,
        }
    }

    /// What the pattern alone cannot tell.
    fn is_it(self, before: &str, found: &str) -> bool {
        let digits = || found.bytes().filter(u8::is_ascii_digit).map(|digit| u32::from(digit - b'0'));
        match self {
            // Words that are joined by hyphens are no key.
            Self::Key => digits().next().is_some(),
            Self::Email => true,
            // The fraction of a number is none either.
            Self::Mobile => !before.strip_suffix('.').is_some_and(|before| before.ends_with(|c: char| c.is_ascii_digit())),
            Self::ResidentId => has_resident_check_digit(found),
            Self::BankCard => (13..=19).contains(&digits().count()) && passes_luhn(digits().collect()),
        }
    }
}

/// GB 11643-1999: ISO 7064, MOD 11-2.
fn has_resident_check_digit(number: &str) -> bool {
    const WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    const CHECK_DIGITS: &[u8; 11] = b"10X98765432";
    let bytes = number.as_bytes();
    let sum: u32 = bytes.iter().zip(WEIGHTS).map(|(digit, weight)| u32::from(digit.wrapping_sub(b'0')) * weight).sum();
    let wanted = CHECK_DIGITS.get((sum % 11) as usize);
    wanted.is_some() && bytes.get(17).map(u8::to_ascii_uppercase).as_ref() == wanted
}

/// ISO/IEC 7812-1, annex B.
fn passes_luhn(digits: Vec<u32>) -> bool {
    let doubled = |digit: u32| if digit > 4 { digit * 2 - 9 } else { digit * 2 };
    let sum: u32 =
        digits.iter().rev().enumerate().map(|(place, digit)| if place % 2 == 1 { doubled(*digit) } else { *digit }).sum();
    sum.is_multiple_of(10)
}

#[derive(Debug)]
struct Mask {
    name: Arc<str>,
    form: Option<Form>,
    regex: Regex,
}

/// What is not stored.
#[derive(Debug)]
pub struct Privacy {
    masks: Vec<Mask>,
    /// Consumers and routes of which no content is stored.
    metadata_consumers: Vec<String>,
    metadata_routes: Vec<String>,
}

impl Default for Privacy {
    /// Keys are masked, nothing else.
    fn default() -> Self {
        Self { masks: built_in(&[Form::Key]), metadata_consumers: Vec::new(), metadata_routes: Vec::new() }
    }
}

#[expect(clippy::expect_used, reason = "constants, compiled by a test")]
fn built_in(forms: &[Form]) -> Vec<Mask> {
    ALL.into_iter()
        .filter(|form| forms.contains(form))
        .map(|form| Mask {
            name: form.name().into(),
            form: Some(form),
            regex: Regex::new(form.pattern()).expect("valid pattern"),
        })
        .collect()
}

/// Longest name of an own pattern: it is a label of a metric.
const MAX_NAME_BYTES: usize = 40;

impl Privacy {
    /// Masks `forms` and own `patterns` (`NAME=REGEX`, in the syntax of the crate `regex`), and keeps nothing but metadata of the
    /// calls of some consumers and routes. The error says which pattern is wrong, and how.
    pub fn new(forms: &[Form], patterns: &[String], consumers: &[String], routes: &[String]) -> Result<Self> {
        let mut masks = built_in(forms);
        for pattern in patterns.iter().filter(|pattern| !pattern.trim().is_empty()) {
            let (name, regex) = pattern.split_once('=').with_context(|| format!("mask pattern '{pattern}': want NAME=REGEX"))?;
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_name) {
                bail!("mask pattern '{pattern}': a name is up to {MAX_NAME_BYTES} letters, digits, - and _");
            }
            if masks.iter().any(|mask| *mask.name == *name) {
                bail!("mask pattern '{pattern}': the name {name} is taken");
            }
            let regex = Regex::new(regex).with_context(|| format!("mask pattern {name}"))?;
            if regex.is_match("") {
                bail!("mask pattern {name}: it matches the empty text, and so everywhere");
            }
            masks.push(Mask { name: name.into(), form: None, regex });
        }
        let names =
            |list: &[String]| list.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect::<Vec<_>>();
        Ok(Self { masks, metadata_consumers: names(consumers), metadata_routes: names(routes) })
    }

    /// Whether only metadata of a call is stored.
    pub fn is_metadata_only(&self, consumer: &str, route: Option<&str>) -> bool {
        self.metadata_consumers.iter().any(|name| name == consumer)
            || route.is_some_and(|route| self.metadata_routes.iter().any(|name| name == route))
    }

    /// Whether any text in `json` may be to mask.
    pub fn may_mask(&self, json: &str) -> bool {
        self.masks.iter().any(|mask| mask.form.is_none_or(|form| form.is_worth_a_look(json)))
    }

    /// Masks `text`; `found` is told of each occurrence.
    pub fn mask<'t>(&self, text: &'t str, mut found: impl FnMut(&Arc<str>)) -> Cow<'t, str> {
        let mut masked = Cow::Borrowed(text);
        for mask in &self.masks {
            if let Some(replaced) = mask.replace(&masked, &mut found) {
                masked = Cow::Owned(replaced);
            }
        }
        masked
    }

    /// Masks the columns of a call. Its `raw_log` is masked as it is written, and there occurrences are counted.
    pub fn mask_columns(&self, call: &mut Call) {
        for text in call.texts_mut() {
            if let Cow::Owned(masked) = self.mask(text, |_| {}) {
                *text = masked;
            }
        }
    }
}

impl Mask {
    /// The text with every occurrence replaced by its name; `None` when there is none.
    fn replace(&self, text: &str, found: &mut impl FnMut(&Arc<str>)) -> Option<String> {
        if self.form.is_some_and(|form| !form.is_worth_a_look(text)) {
            return None;
        }
        let mut out = String::new();
        let mut done = 0;
        for occurrence in self.regex.find_iter(text) {
            let before = text.get(..occurrence.start()).unwrap_or_default();
            if self.form.is_some_and(|form| !form.is_it(before, occurrence.as_str())) {
                continue;
            }
            found(&self.name);
            out.push_str(text.get(done..occurrence.start()).unwrap_or_default());
            out.push('[');
            out.push_str(&self.name);
            out.push(']');
            done = occurrence.end();
        }
        if done == 0 {
            return None;
        }
        out.push_str(text.get(done..).unwrap_or_default());
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(privacy: &Privacy, text: &str) -> (String, Vec<String>) {
        let mut names = Vec::new();
        let masked = privacy.mask(text, |name| names.push(name.to_string())).into_owned();
        (masked, names)
    }

    #[test]
    fn what_has_a_form_is_replaced_by_its_name() {
        let privacy = Privacy::new(&ALL, &[], &[], &[]).unwrap();
        // Numbers are the examples of the standards and of card companies' documentation, or made up.
        for (text, expected) in [
            ("write to a.b+c@mail.example.com, please", "write to [email], please"),
            ("邮箱zhang@例.cn和li@example.cn。", "邮箱zhang@例.cn和[email]。"),
            ("电话13812345678，或 138-1234-5678", "电话[mobile]，或 [mobile]"),
            ("+86 13812345678, 8613912345678, 0086-13812345678", "+[mobile], [mobile], [mobile]"),
            ("12812345678 23812345678 138123456789 a13812345678", "12812345678 23812345678 138123456789 a13812345678"),
            ("loss 0.13812345678", "loss 0.13812345678"),
            ("身份证11010519491231002X。", "身份证[resident-id]。"),
            ("11010519491231002x 440524188001010014", "[resident-id] [resident-id]"),
            ("110105194912310021 11010519491331002X", "110105194912310021 11010519491331002X"),
            ("card 4111 1111 1111 1111 or 4111111111111111", "card [bank-card] or [bank-card]"),
            ("5500-0000-0000-0004, 3782 822463 10005", "[bank-card], [bank-card]"),
            ("6222020200112233440 4111111111111112", "6222020200112233440 4111111111111112"),
            ("at 1795402800000 ms", "at 1795402800000 ms"),
            ("key sk-abcdefghij0123456789 and sk-learn-contrib-something", "key [key] and sk-learn-contrib-something"),
            ("task-force sk-short1", "task-force sk-short1"),
        ] {
            assert_eq!(masked(&privacy, text).0, expected, "{text}");
        }
    }

    #[test]
    fn forms_are_given_by_name() {
        assert_eq!("email, key".parse(), Ok(Forms(vec![Form::Email, Form::Key])));
        assert_eq!("".parse(), Ok(Forms(Vec::new())));
        assert_eq!(
            "emails".parse::<Forms>().unwrap_err(),
            "there is no form emails; there are key, email, resident-id, mobile, bank-card"
        );
    }

    #[test]
    fn nothing_but_keys_is_masked_by_default() {
        let text = "sk-abcdefghij0123456789 a@example.com 13812345678 11010519491231002X 4111111111111111";
        let (masked, names) = masked(&Privacy::default(), text);
        assert_eq!(masked, "[key] a@example.com 13812345678 11010519491231002X 4111111111111111");
        assert_eq!(names, ["key"]);
    }

    #[test]
    fn own_patterns_have_names_and_are_counted_each_time() {
        let privacy = Privacy::new(&[], &["staff=[zZ][0-9]{6}".to_owned(), "项目=x".to_owned()], &[], &[]);
        assert_eq!(format!("{:#}", privacy.unwrap_err()), "mask pattern '项目=x': a name is up to 40 letters, digits, - and _");
        let privacy = Privacy::new(&[], &["staff=[zZ][0-9]{6}".to_owned()], &[], &[]).unwrap();
        let (masked, names) = masked(&privacy, "z123456 asks Z200001");
        assert_eq!((masked.as_str(), names.len()), ("[staff] asks [staff]", 2));
    }

    #[test]
    fn a_pattern_that_cannot_be_meant_is_refused() {
        for (pattern, message) in [
            ("[0-9]+", "want NAME=REGEX"),
            ("a=(", "mask pattern a"),
            ("a=x*", "matches the empty text"),
            ("key=x", "is taken"),
            ("=x", "a name is"),
        ] {
            let error = Privacy::new(&[Form::Key], &[pattern.to_owned()], &[], &[]).unwrap_err();
            assert!(format!("{error:#}").contains(message), "{pattern}: {error:#}");
        }
    }

    #[test]
    fn metadata_alone_is_kept_of_named_consumers_and_routes() {
        let names = |name: &str| vec![name.to_owned(), String::new()];
        let privacy = Privacy::new(&[], &[], &names("hr"), &names("vllm-embeddings")).unwrap();
        assert!(privacy.is_metadata_only("hr", None) && privacy.is_metadata_only("a", Some("vllm-embeddings")));
        assert!(!privacy.is_metadata_only("a", Some("hr")) && !privacy.is_metadata_only("", Some("")));
    }
}
