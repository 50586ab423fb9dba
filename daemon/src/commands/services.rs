//! `cairn services`: what a store offers.

use std::time::Duration;

use cairn_castore::{Address, grpc::GrpcPeer};
use clap::Args;
use serde::Serialize;

use super::ping::seconds;
use crate::{
    cli::Context,
    exit::{Code, Failure},
    output::Output,
    peer,
    probe::{Answer, in_milliseconds, milliseconds, probe},
    services::{BLOBS, DIRECTORIES, OpenServices, PATH_INFOS, ServiceArgs},
};

/// Show what a store offers
///
/// For each store that the command line names: its kind, which of blobs, directories and path infos it
/// has and how long each takes to answer, and what it is used for. A server is asked for its version, its
/// gRPC services (by reflection) and their health; what it does not tell is unknown, as the version of
/// one that is not cairn.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn --store grpc+http://host:8000 services
  cairn --store objectstore+s3://bucket services
  cairn --store grpc+http://host:8000 services --json | jq -r .version")]
pub(crate) struct ServicesArgs {
    /// How long each store may take
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    deadline: Duration,
    /// Print a JSON object for each store
    #[arg(long)]
    json: bool,
}

/// A store, and what it offers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StoreRecord {
    store: String,
    kind: &'static str,
    used_for: Vec<&'static str>,
    /// Of cairn; `None` if the store does not tell.
    version: Option<String>,
    /// Of a server, whatever the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_milliseconds: Option<f64>,
    has: Vec<AnswerRecord>,
    /// `None` if that is no server, or one without reflection.
    grpc_services: Option<Vec<GrpcServiceRecord>>,
}

/// One of the three services that all stores have.
#[derive(Debug, Serialize)]
struct AnswerRecord {
    service: &'static str,
    /// `None` if it is not offered.
    milliseconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct GrpcServiceRecord {
    name: String,
    health: Option<&'static str>,
}

impl ServicesArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut output = Output::new();
        for (index, (address, used_for)) in context.stores()?.into_iter().enumerate() {
            let asked = tokio::time::timeout(self.deadline, ask(&address, used_for)).await;
            let record = asked.unwrap_or_else(|_| {
                let what = format!("{address} has not answered within {:?}", self.deadline);
                Err(Failure::plain(Code::Failed, what)
                    .help("check that it runs, or give it more time with --deadline"))
            })?;
            match self.json {
                true => output.json(&record).await?,
                false => {
                    if index > 0 {
                        output.line("").await?;
                    }
                    record.print(&mut output).await?;
                }
            }
        }
        output.flush().await
    }
}

async fn ask(address: &Address, used_for: Vec<&'static str>) -> Result<StoreRecord, Failure> {
    let opened = OpenServices::open(&ServiceArgs::of(address.clone())).await?;
    let answers = async {
        // The first time connects.
        probe(&opened.services).await?;
        probe(&opened.services).await
    };
    let answers = answers.await;
    opened.close().await;
    let has = [BLOBS, DIRECTORIES, PATH_INFOS].into_iter().zip(answers?);
    let has = has.map(|(service, answer)| AnswerRecord {
        service,
        milliseconds: match answer {
            Answer::After(time) => Some(milliseconds(time)),
            Answer::NotOffered => None,
        },
    });
    let kind = match address {
        Address::Memory => "memory",
        Address::Local(_) => "local store",
        Address::ObjectStore(_) => "objects",
        Address::Grpc(_) => "gRPC server",
        Address::Cache(_) => "cache",
        Address::Upstreams(_) => "upstreams",
    };
    let mut record = StoreRecord {
        store: address.to_string(),
        kind,
        used_for,
        version: None,
        latency_milliseconds: None,
        has: has.collect(),
        grpc_services: None,
    };
    if let Address::Grpc(grpc) = address {
        let failed = |error: cairn_castore::BoxError| {
            Failure::new(format!("{address} does not tell what it offers"), error)
        };
        let peer = GrpcPeer::new(grpc).map_err(|error| failed(error.into()))?;
        let report = peer::ask(&peer).await.map_err(|status| failed(status.into()))?;
        record.version = report.version;
        record.latency_milliseconds = Some(milliseconds(report.latency));
        record.grpc_services = report.offers.map(|offers| {
            let offers = offers.into_iter();
            offers
                .map(|offer| GrpcServiceRecord { name: offer.name, health: offer.health })
                .collect()
        });
    }
    Ok(record)
}

impl StoreRecord {
    async fn print(&self, output: &mut Output) -> Result<(), Failure> {
        let mut line = async |label: &str, value: &str| {
            output.line(format!("{:<13}{value}", format!("{label}:"))).await
        };
        let in_words = |time: f64| in_milliseconds(Duration::from_secs_f64(time / 1000.0));
        line("store", &self.store).await?;
        line("kind", self.kind).await?;
        line("used for", &self.used_for.join(", ")).await?;
        if let Some(latency) = self.latency_milliseconds {
            let version = self.version.as_deref().map(|version| format!("cairn {version}"));
            line("version", version.as_deref().unwrap_or("unknown")).await?;
            line("latency", &in_words(latency)).await?;
        }
        for AnswerRecord { service, milliseconds } in &self.has {
            let answer = milliseconds.map(in_words);
            line(service, answer.as_deref().unwrap_or("not offered")).await?;
        }
        match &self.grpc_services {
            None if self.latency_milliseconds.is_some() => {
                line("gRPC", "unknown: the server has no reflection").await?;
            }
            None => {}
            Some(services) => {
                for GrpcServiceRecord { name, health } in services {
                    let health = health.unwrap_or("health unknown");
                    line("gRPC", &format!("{name} ({health})")).await?;
                }
            }
        }
        Ok(())
    }
}
