//! Settings of `models`.

use clap::{Args, Subcommand, ValueEnum};

use super::AdminArgs;

/// Settings of `models`.
#[derive(Debug, Args)]
pub struct ModelsCommand {
    #[command(subcommand)]
    pub action: ModelsAction,
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// What to do with models.
#[derive(Debug, Subcommand)]
pub enum ModelsAction {
    /// Add a model with its servers, or bring one that is there to this. Without a name the first server is asked for the models it has
    Add {
        /// [NAME] URL…: what people call the model, then its servers, as http://10.0.0.7:8000
        #[arg(required = true, value_name = "NAME|URL")]
        words: Vec<String>,
        /// Other names for it, separated by commas
        #[arg(long, value_delimiter = ',')]
        alias: Vec<String>,
        /// What its servers call it, where that is something else
        #[arg(long)]
        served_as: Option<String>,
        /// Who may use it, separated by commas: team:ml, alice. None: everybody
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// How calls are spread over its servers
        #[arg(long, value_enum, default_value_t = BalanceWord::Least)]
        balance: BalanceWord,
        /// File with the key that its servers want, in its first line; - is standard input
        #[arg(long)]
        key_file: Option<String>,
    },
    /// Models, who may use them, and their servers as Kong sees them
    List {
        /// As JSON; without keys
        #[arg(long)]
        json: bool,
    },
    /// Who may use a model from now on
    Allow {
        /// Which
        name: String,
        /// team:NAME, names of users; `everybody`
        #[arg(required = true)]
        who: Vec<String>,
    },
    /// Take a model and its servers away
    Remove {
        /// Which
        name: String,
    },
}

/// How calls are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BalanceWord {
    /// To the server with the fewest calls
    Least,
    /// Those of one user to one server, so that its prefix cache is hit
    Consumer,
}
