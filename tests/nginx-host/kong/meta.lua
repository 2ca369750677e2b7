--- Test equipment: the version Kong's plugins report about themselves.

local settings = require "host.settings"

return {
  version = settings.version,
  _VERSION = settings.version,
  _SERVER_TOKENS = settings.server_token,
}
