//! `switchback`: the operator's command line. Data on stdout, everything else on stderr.

mod args;
mod change;
mod commands;
mod config;
mod context;
mod drain;
mod exit;
mod hints;
mod output;
mod readiness;
mod text;
mod view;

use std::process::ExitCode;

use clap::{Parser as _, error::ErrorKind};
use switchback_common::{config::redact, telemetry};

use crate::{
    args::{Cli, Noun},
    context::Context,
    exit::{Exit, Failure},
    output::{Output, tell},
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    telemetry::init_logs();
    let exit = match run(cli) {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            tell(format_args!("switchback: {}", text::one_line(&failure.to_string())));
            failure.exit()
        }
    };
    exit.into()
}

/// Help goes to stdout, a mistake to stderr; a mistake shows no password that was typed in the wrong place.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if !error.use_stderr() {
        let _ = Output::stdout(output::Format::Table).text(&text);
        return Exit::Ok.into();
    }
    match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => tell(text.trim_end()),
        _ => tell(redact(text.trim_end())),
    }
    Exit::Usage.into()
}

fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Other(format!("cannot start: {e}")))?;
    runtime.block_on(async {
        let mut out = Output::stdout(cli.global.output);
        let context = Context::connect(&cli.global).await?;
        match cli.noun {
            Noun::Gate(verb) => commands::gate::run(&context, &mut out, verb).await,
            Noun::Rollout(verb) => Box::pin(commands::rollout::run(&context, &mut out, verb)).await,
            Noun::Queue(verb) => commands::queue::run(&context, &mut out, verb).await,
            Noun::Task(verb) => commands::task::run(&context, &mut out, verb).await,
            Noun::Dead(verb) => commands::dead::run(&context, &mut out, verb).await,
            Noun::Schedule(verb) => commands::schedule::run(&context, &mut out, verb).await,
            Noun::Version(verb) => commands::version::run(&context, &mut out, verb).await,
            Noun::Worker(verb) => commands::worker::run(&context, &mut out, verb).await,
            Noun::Config(verb) => commands::config::run(context, &mut out, verb).await,
        }
    })
}
