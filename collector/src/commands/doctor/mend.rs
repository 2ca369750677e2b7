//! Commands that mend Kong's configuration, as they can be copied into a shell.

use crate::config::DoctorSettings;

/// What configure.sh makes in Kong has ids of this form (`GATEWAY_IDS` in `deploy/kong/admin-api.sh`).
pub(super) const OWN_IDS: &str = "7c1ea1d0-6b1f-4000-8000-";

/// How this installation is mended: through its `gateway` command, or with the project's script.
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
            None => "deploy/kong/configure.sh".to_owned(),
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

    /// A setting, then the same: in the settings file, or for the script.
    pub(super) fn with(self, in_file: &str, for_script: &str) -> String {
        match self.gateway {
            Some(gateway) => format!("{in_file} in gateway.env; {gateway} apply"),
            None => format!("{for_script} deploy/kong/configure.sh"),
        }
    }
}
