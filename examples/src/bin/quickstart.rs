//! A guarded rollout on this machine, for real: see `--help`.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use rollback_examples::{service, stage};

/// Releases v2 of a small HTTP service to real traffic, notices that it is bad, and brings v1 back.
#[derive(Parser)]
#[command(name = "quickstart")]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program is when it has started itself again.
#[derive(Subcommand)]
enum Part {
    #[command(hide = true)]
    Service { build: String },
    #[command(hide = true)]
    Router { folder: PathBuf },
    #[command(hide = true)]
    Traffic { users: SocketAddr },
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match args.part {
        Some(Part::Service { build }) => service::run(serde_json::from_str(&build).unwrap()).await.unwrap(),
        Some(Part::Router { folder }) => stage::run_router(&folder).await.unwrap(),
        Some(Part::Traffic { users }) => stage::run_traffic(users).await,
        None => {}
    }
    ExitCode::SUCCESS
}
