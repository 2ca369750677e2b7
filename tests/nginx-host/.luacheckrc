std = "ngx_lua"
max_line_length = 100
-- `kong` and `host` are the two globals: the first because plugins expect it,
-- the second for the one-line blocks of nginx.conf.in.
globals = { "kong", "host" }
-- Handlers have the signature Kong calls them with, used or not.
unused_args = false
self = false
