//! Commands that mend Kong's configuration, as they can be copied into a shell.

use crate::commands::PROGRAM;
use crate::config::DoctorSettings;
use crate::kong::apply::PLUGINS;

/// How this installation is mended: through its `gateway` command, or with this program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mend<'s> {
    gateway: Option<&'s str>,
}

impl<'s> Mend<'s> {
    pub(super) fn of(settings: &'s DoctorSettings) -> Self {
        Self { gateway: settings.gateway.as_deref() }
    }

    /// Brings what the installation made in Kong back to its settings.
    pub(super) fn configure(self) -> String {
        match self.gateway {
            Some(gateway) => format!("{gateway} apply"),
            None => "llm-collector kong apply".to_owned(),
        }
    }

    /// The same, and removes what somebody else made and what stands in its way or leads past it.
    pub(super) fn adopt(self) -> String {
        self.configure() + " --adopt"
    }

    /// The first where all that is wrong was made by the installation, else the second.
    pub(super) fn for_owner(self, is_own: bool) -> String {
        if is_own { self.configure() } else { self.adopt() }
    }

    /// A command of the operator's.
    pub(super) fn command(self, words: &str) -> String {
        format!("{} {words}", self.gateway.unwrap_or(PROGRAM))
    }

    /// A command about models.
    pub(super) fn models(self, words: &str) -> String {
        self.command(&format!("models {words}"))
    }

    /// Brings a Kong to know all plugins of this project.
    pub(super) fn plugins(self) -> String {
        match self.gateway {
            Some(gateway) => format!("{gateway} upgrade NEWBUNDLE"),
            None => format!("start Kong with KONG_PLUGINS={PLUGINS} (docs/kong.md); then {}", self.configure()),
        }
    }

    /// A setting, then the same: in the settings file, or for this program.
    pub(super) fn with(self, in_file: &str, for_script: &str) -> String {
        match self.gateway {
            Some(gateway) => format!("{in_file} in gateway.env; {gateway} apply"),
            None => format!("{for_script} llm-collector kong apply"),
        }
    }
}
