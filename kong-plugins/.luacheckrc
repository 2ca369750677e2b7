-- Kong's Lua environment: nginx's API, and `kong`, of which a plugin may only
-- write its own part of the context.
std = "ngx_lua"
read_globals = {
  kong = {
    other_fields = true,
    fields = {
      ctx = {
        fields = {
          plugin = { read_only = false, other_fields = true },
          shared = {
            fields = {
              llm_audit_entry = { read_only = false },
              llm_request = { read_only = false, other_fields = true },
            },
          },
        },
      },
    },
  },
}
max_line_length = 80

files["spec/**/*.lua"] = {
  std = "luajit+busted",
  globals = { "ngx", "kong" },
}

files["*.rockspec"] = { std = "rockspec" }
