-- Lets clients of the OpenAI SDKs use key-auth: takes the key out of
-- "Authorization: Bearer KEY" and hands it on as X-API-Key.
--
-- Loaded as an `access` snippet of Kong's pre-function plugin, which runs
-- before key-auth. It runs in Kong's sandbox: no `require`, only `kong`,
-- `ngx` and the plain Lua functions.
--
-- Invariant: an Authorization header that names the scheme Bearer never goes
-- on to the model server, whatever else the request carries.
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

local first = kong.request.get_header("Authorization")
local is_bearer, key
if first then
  is_bearer, key = read_bearer(first)
end

if first and not key then
  -- A repeated header: the key may stand behind another scheme, where it
  -- would be sent on to the model server. 1000 is the most that Kong reads;
  -- its default of 100 would let a client hide the header.
  local all = kong.request.get_headers(1000)["authorization"]
  if type(all) == "table" then
    for _, value in ipairs(all) do
      local this_is_bearer, this_key = read_bearer(value)
      is_bearer = is_bearer or this_is_bearer
      key = key or this_key
    end
  end
end

if key then
  kong.service.request.set_header("X-API-Key", key)
end

if is_bearer then
  kong.service.request.clear_header("Authorization")
end

-- llm-audit notes addresses that made too many calls without a valid key.
-- Whoever brings a key is left to key-auth: the next one may be right, and
-- belong to somebody else behind the same address.
local noted = ngx.shared.llm_gateway
if not key and noted and not kong.request.get_header("X-API-Key")
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
