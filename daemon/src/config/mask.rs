//! What is shown of a value that may hold a secret.

use cairn_castore::Address;
use url::Url;

/// What stands for a secret.
pub(crate) const MASK: &str = "***";

/// The value, without what could be a secret in a URL: passwords, and the options of a bucket.
pub(crate) fn masked(value: &str) -> String {
    if let Ok(address) = value.parse::<Address>() {
        let masked = address.masked(MASK);
        // An address can be written in several ways: as long as nothing is hidden, it is as it was.
        return if masked.contains(MASK) { masked } else { value.to_owned() };
    }
    match Url::parse(value) {
        Ok(mut url) if url.password().is_some() => {
            // A URL with a password has a host, so this can't fail.
            let _ = url.set_password(Some(MASK));
            url.into()
        }
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_nothing_else() {
        for (value, shown) in [
            ("60", "60"),
            ("/a/b?c=d", "/a/b?c=d"),
            ("sled:///a", "sled:///a"),
            ("objectstore+s3://b/p?aws_region=here", "objectstore+s3://b/p?aws_region=here"),
            (
                "objectstore+s3://b?aws_region=here&aws_secret_access_key=x%26k=y",
                "objectstore+s3://b?aws_region=here&aws_secret_access_key=***",
            ),
            ("objectstore+https://me:pass@host/", "objectstore+https://me:***@host/"),
            (
                "cache:?near=memory:&far=objectstore%2Bs3://b?token=x",
                "cache:?near=memory:&far=objectstore+s3://b?token=***",
            ),
            ("https://me:pass@host/a", "https://me:***@host/a"),
            ("https://host/a", "https://host/a"),
        ] {
            assert_eq!(masked(value), shown);
        }
    }
}
