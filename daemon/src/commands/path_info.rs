//! `cairn path-info`: what a store knows of a store path.

use cairn_store::{ContentAddress, PathInfo, Signature, StorePath, nixbase32};
use clap::Args;
use data_encoding::BASE64;
use serde::Serialize;

use crate::{
    cli::Context,
    exit::{Code, Failure},
    output::Output,
};

/// Show what is known of a store path
///
/// Its root, the size and hash of its NAR, what it refers to, what it was built by, who signed
/// it, and what its name was computed from.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn path-info /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn path-info --json y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree | jq -r .narHash")]
pub(crate) struct PathInfoArgs {
    /// A store path, whole or without /nix/store/
    #[arg(value_name = "PATH")]
    path: StorePath,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl PathInfoArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let path = &self.path;
        context
            .with_services(async |services| {
                let found =
                    services.path_infos.get(path.hash()).await.map_err(|error| {
                        Failure::new(format!("{path} can't be looked up"), error)
                    })?;
                // The hash alone is not the path: another name is another path.
                let info = found.filter(|info| info.store_path == *path).ok_or_else(|| {
                    Failure::plain(Code::NotFound, format!("{path} is not in the store"))
                })?;
                let record = PathInfoRecord::of(&info);
                let mut output = Output::new();
                match self.json {
                    true => output.json(&record).await?,
                    false => record.print(&mut output).await?,
                }
                output.flush().await
            })
            .await
    }
}

/// A path info in the words of Nix.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PathInfoRecord {
    path: String,
    root: super::stat::NodeRecord,
    nar_size: u64,
    nar_hash: String,
    references: Vec<String>,
    deriver: Option<String>,
    signatures: Vec<String>,
    ca: Option<String>,
}

impl PathInfoRecord {
    pub(crate) fn of(info: &PathInfo) -> Self {
        Self {
            path: info.store_path.to_absolute(),
            root: super::stat::NodeRecord::of(&info.node),
            nar_size: info.nar.size,
            nar_hash: format!("sha256:{}", nixbase32::encode(&info.nar.sha256)),
            references: info.references.iter().map(StorePath::to_absolute).collect(),
            deriver: info.deriver.as_ref().map(|path| format!("{}.drv", path.to_absolute())),
            signatures: info.signatures.iter().map(signature).collect(),
            ca: info.ca.as_ref().map(content_address),
        }
    }

    async fn print(&self, output: &mut Output) -> Result<(), Failure> {
        let mut line = async |label: &str, value: &str| {
            output.line(format!("{:<12}{value}", format!("{label}:"))).await
        };
        line("path", &self.path).await?;
        line("root", &self.root.summary()).await?;
        line("NAR size", &self.nar_size.to_string()).await?;
        line("NAR hash", &self.nar_hash).await?;
        for reference in &self.references {
            line("reference", reference).await?;
        }
        if let Some(deriver) = &self.deriver {
            line("deriver", deriver).await?;
        }
        for signature in &self.signatures {
            line("signature", signature).await?;
        }
        if let Some(ca) = &self.ca {
            line("ca", ca).await?;
        }
        Ok(())
    }
}

/// `<name of the key>:<base64>`, as in a narinfo.
fn signature(signature: &Signature) -> String {
    format!("{}:{}", signature.name, BASE64.encode(&signature.data))
}

/// The way Nix writes a content address.
fn content_address(ca: &ContentAddress) -> String {
    use cairn_proto::snix::store::v1::nar_info::ca::Hash;
    let kind = match ca.kind {
        Hash::NarSha256 => "fixed:r:sha256",
        Hash::NarSha1 => "fixed:r:sha1",
        Hash::NarSha512 => "fixed:r:sha512",
        Hash::NarMd5 => "fixed:r:md5",
        Hash::TextSha256 => "text:sha256",
        Hash::FlatSha1 => "fixed:sha1",
        Hash::FlatMd5 => "fixed:md5",
        Hash::FlatSha256 => "fixed:sha256",
        Hash::FlatSha512 => "fixed:sha512",
    };
    format!("{kind}:{}", nixbase32::encode(&ca.digest))
}
