//! The names of Tvix: its clients speak the same messages under other package names, so a request
//! under one of those is answered as if it had come under Snix's. What is served is not known here.

use tonic::{body::Body, codegen::http};
use tower::util::MapRequestLayer;

/// Tvix's packages and the ones that answer for them.
const PACKAGES: [(&str, &str); 2] =
    [("/tvix.castore.v1.", "/snix.castore.v1."), ("/tvix.store.v1.", "/snix.store.v1.")];

type Request = http::Request<Body>;

/// The layer that renames requests.
pub(super) fn layer() -> MapRequestLayer<fn(Request) -> Request> {
    MapRequestLayer::new(rename)
}

/// The name that Tvix's clients know a service of Snix by.
pub(super) fn service_name(snix: &str) -> Option<String> {
    let rest = snix.strip_prefix("snix.")?;
    Some(format!("tvix.{rest}"))
}

fn rename(mut request: Request) -> Request {
    let path = request.uri().path();
    let renamed = PACKAGES.iter().find_map(|(tvix, snix)| {
        let method = path.strip_prefix(tvix)?;
        format!("{snix}{method}").parse::<http::uri::PathAndQuery>().ok()
    });
    if let Some(renamed) = renamed {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.path_and_query = Some(renamed);
        // A URI that was whole stays whole with another path.
        if let Ok(uri) = http::Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renamed(uri: &str) -> String {
        let request = http::Request::builder().uri(uri).body(Body::empty()).unwrap();
        rename(request).uri().to_string()
    }

    #[test]
    fn only_the_packages_of_tvix_are_renamed() {
        let blob = "/tvix.castore.v1.BlobService/Stat";
        assert_eq!(renamed(blob), "/snix.castore.v1.BlobService/Stat");
        assert_eq!(
            renamed("http://localhost:8000/tvix.store.v1.PathInfoService/Get"),
            "http://localhost:8000/snix.store.v1.PathInfoService/Get"
        );
        for other in ["/snix.castore.v1.BlobService/Stat", "/tvix.castore.v2.X/Y", "/", "/tvix"] {
            assert_eq!(renamed(other), other);
        }
    }

    #[test]
    fn services_of_snix_have_a_name_in_tvix() {
        let name = service_name("snix.castore.v1.BlobService");
        assert_eq!(name.as_deref(), Some("tvix.castore.v1.BlobService"));
        assert_eq!(service_name("cairn.v1.BlobService"), None);
    }
}
