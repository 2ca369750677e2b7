-- Lets clients of the OpenAI SDKs use key-auth: takes the key out of
-- "Authorization: Bearer KEY" and hands it on as X-API-Key.
--
-- Loaded as an `access` snippet of Kong's pre-function plugin, which runs
-- before key-auth. It runs in Kong's sandbox: no `require`, only `kong`,
-- `ngx` and the plain Lua functions.
--
-- It also removes what no client may say to the model server: who it is
-- (X-Consumer-*, X-Credential-*, which key-auth sets behind this), which place
-- in the queue it wants, which rank or session of the server.
--
-- Invariants: an Authorization header that names the scheme Bearer never goes
-- on to the model server, whatever else the request carries. A key that
-- key-auth could not look up (its database takes UTF-8 only) is refused here,
-- as a wrong one.
--
-- An address that keeps calling without a key is told to wait (429).
--
-- What it does not do: it does not check the key (key-auth does), it does not
-- turn other schemes into keys and leaves them where they are, and it does
-- not touch X-API-Key when there is no Bearer key. With both, Bearer wins.

-- Patterns are anchored and made of disjoint classes: a header full of blanks
-- must not cost more than one pass.
local SCHEME = "^[ \t]*[Bb][Ee][Aa][Rr][Ee][Rr]"

-- Is there a Bearer scheme, and which key does it carry?
local function read_bearer(value)
  local rest = value:match(SCHEME .. "[ \t]+([^ \t].*)$")
  if rest then
    return true, rest:match("^.*[^ \t]")
  end

  return value:match(SCHEME .. "[ \t]*$") ~= nil
end

-- Keys are issued with some 40 characters; this is room for any that were made
-- by hand.
local MAX_KEY_BYTES = 1024

-- UTF-8 by its characters: each becomes a letter, and no byte beyond ASCII may
-- remain.
local CHARACTERS = {
  "[\194-\223][\128-\191]",
  "\224[\160-\191][\128-\191]",
  "[\225-\236\238\239][\128-\191][\128-\191]",
  "\237[\128-\159][\128-\191]",
  "\240[\144-\191][\128-\191][\128-\191]",
  "[\241-\243][\128-\191][\128-\191][\128-\191]",
  "\244[\128-\143][\128-\191][\128-\191]",
}

local function can_be_looked_up(value)
  if #value > MAX_KEY_BYTES or value:find("%c") then
    return false
  end

  if value:find("[\128-\255]") then
    for _, character in ipairs(CHARACTERS) do
      value = value:gsub(character, "x")
    end
  end

  return not value:find("[\128-\255]")
end

-- The most that Kong reads; its default of 100 would let a client hide a
-- header behind others.
local MAX_HEADERS = 1000

-- In lower case, with dashes: the model server may not tell them from
-- underscores.
local FORBIDDEN = {
  ["x-vllm-priority"] = true,
  ["x-data-parallel-rank"] = true,
  ["x-session-id"] = true,
  ["x-anonymous-consumer"] = true,
}

local function is_forbidden(name)
  name = name:lower():gsub("_", "-")

  return FORBIDDEN[name] or name:find("^x%-consumer%-") ~= nil
         or name:find("^x%-credential%-") ~= nil
end

local headers = kong.request.get_headers(MAX_HEADERS)
local count = 0
for name, value in pairs(headers) do
  count = count + (type(value) == "table" and #value or 1)
  if is_forbidden(name) then
    kong.service.request.clear_header(name)
  end
end

if count >= MAX_HEADERS then
  return kong.response.exit(400, { message = "too many headers" })
end

local function as_list(value)
  return type(value) == "table" and value or { value }
end

-- A repeated header: the key may stand behind another scheme, where it would
-- be sent on to the model server.
local is_bearer, key = false, nil
for _, value in ipairs(as_list(headers["authorization"])) do
  local this_is_bearer, this_key = read_bearer(value)
  is_bearer = is_bearer or this_is_bearer
  key = key or this_key
end

if is_bearer then
  kong.service.request.clear_header("Authorization")
end

for _, candidate in ipairs(key and { key } or as_list(headers["x-api-key"])) do
  if type(candidate) == "string" and not can_be_looked_up(candidate) then
    return kong.response.exit(401, { message = "Unauthorized" },
                              { ["WWW-Authenticate"] = "Key" })
  end
end

if key then
  kong.service.request.set_header("X-API-Key", key)
end

-- llm-audit notes addresses that made too many calls without a valid key.
-- Whoever brings a key is left to key-auth: the next one may be right, and
-- belong to somebody else behind the same address.
local noted = ngx.shared.llm_gateway
if not key and noted and not headers["x-api-key"]
  and noted:get("over:" .. ngx.var.remote_addr)
then
  kong.response.exit(429, {
    message = "Too many calls without a valid key from this address",
  }, {
    ["Retry-After"] = tostring(60 - math.floor(ngx.now()) % 60),
    -- Trying again without a key leads nowhere.
    ["X-Should-Retry"] = "false",
  })
end
