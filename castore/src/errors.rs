//! Errors with what they come from: to look for one among them, and to tell all of them.

use std::{error::Error, iter};

use tonic::Status;

/// An error and what it comes from.
pub fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    fn source<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
        (*error).source()
    }
    iter::successors(Some(error), source)
}

/// An error and its sources in one line, for whoever can't be shown the chain: it does not cross the
/// wire, nor does a log have lines below lines.
pub fn message(error: &(dyn Error + 'static)) -> String {
    let mut message = String::new();
    let mut said = String::new();
    for error in chain(error) {
        // A status tells its sources in its message, and displays like a debugger.
        let status = error.downcast_ref::<Status>();
        let text = match status.map(|status| (status.message(), status.code())) {
            None => error.to_string(),
            Some(("", code)) => code.description().to_owned(),
            Some((message, _)) => message.to_owned(),
        };
        // Some libraries print their sources themselves; once is enough.
        if !said.ends_with(&text) {
            let between = if message.is_empty() { "" } else { ": " };
            message.extend([between, &text]);
        }
        if status.is_some() {
            break;
        }
        said = text;
    }
    message
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::BlobError;

    #[test]
    fn an_error_and_its_sources_are_told_once_each() {
        let unavailable = |source| BlobError::Unavailable { service: "there".to_owned(), source };
        let cases = [
            (io::Error::other("gone").into(), "gone"),
            (io::Error::other(io::Error::other("gone")).into(), "gone"),
            (Status::unavailable("gone fishing").into(), "gone fishing"),
            (Status::unavailable("").into(), "The service is currently unavailable"),
            (Status::from_error(io::Error::other("gone").into()).into(), "gone"),
        ];
        for (source, told) in cases {
            assert_eq!(message(&unavailable(source)), format!("there can't be reached: {told}"));
        }
    }
}
