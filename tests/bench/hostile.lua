-- How long the gateway looks at a request, for bodies that are made to take
-- long: processor time a MiB, the best of five rounds, and the memory above
-- the body's own.
--
--   luajit tests/bench/hostile.lua [MIB]    from anywhere; 8 MiB unless told

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/../../kong-plugins/?.lua;" .. package.path

local request = require "llm_gateway.request"

local MIB = 1048576
local SIZE = (tonumber(arg[1]) or 8) * MIB
local PIECE_BYTES = 262144
local ROUNDS = 5


local function fill(text, size)
  return text:rep(math.max(1, math.floor((size or SIZE) / #text)))
end


local function distinct_keys()
  local keys = {}
  for i = 1, SIZE / 24 do
    keys[i] = ('"\\u0073tre%08d":0'):format(i)
  end
  return "{" .. table.concat(keys, ",") .. "}"
end


local LEVELS = ("["):rep(890) .. ("]"):rep(890) .. ","

local BODIES = {
  { "chat messages", '{"messages":[' .. fill('{"role":"user","content":'
    .. '"How are you?\\nFine, thank you for asking."},') .. "0]," },
  { "one long text", '{"prompt":"' .. fill("lorem ipsum dolor sit ") .. '",' },
  { "a picture", '{"a":[{"url":"data:image/png;base64,' .. fill("iVBORw0K")
    .. '"}],' },
  { "token ids", '{"prompt":[' .. fill("15043,29892,") .. "1]," },
  { "keys with escapes, all different", distinct_keys() .. " " },
  { "[{},{},...]", '{"a":[' .. fill("{},") .. "0]," },
  { "lists in lists", '{"a":[' .. fill(LEVELS) .. "0]," },
  { "lists without end", '{"a":' .. fill("[") .. "," },
  { "empty strings", '{"a":[' .. fill('"",') .. "0]," },
  { "short strings", '{"a":[' .. fill('"ab\\"c",') .. "0]," },
  { "nothing but \\\"", '{"a":"' .. fill('\\"') .. '",' },
  { "nothing but \\\\", '{"a":"' .. fill("\\\\") .. '",' },
  { "nothing but \\u0041", '{"a":"' .. fill("\\u0041") .. '",' },
  { "blanks in front", fill(" \n") .. "{" },
  { "blanks inside", "{" .. fill(" \n") },
  { "one number", '{"a":' .. fill("1") .. "," },
  { "one key", '{"' .. fill("k") .. '":1,' },
}


local function read(body)
  local reader = request.new()
  for from = 1, #body, PIECE_BYTES do
    reader:feed(body:sub(from, from + PIECE_BYTES - 1))
  end

  return reader:finish(#body)
end


print(("%-34s %8s %10s %10s  %s"):format("body", "MiB", "ms a MiB", "KiB more",
                                         "read as"))
for _, case in ipairs(BODIES) do
  local body = case[2] .. '"model":"m","stream":true}'
  local best, more = math.huge, 0
  local reading

  for _ = 1, ROUNDS do
    collectgarbage()
    collectgarbage()
    local before = collectgarbage("count")
    local started = os.clock()
    reading = read(body)
    best = math.min(best, os.clock() - started)
    more = math.max(more, collectgarbage("count") - before)
  end

  print(("%-34s %8.2f %10.2f %10.0f  %s"):format(
    case[1], #body / MIB, best * 1000 / (#body / MIB), more,
    reading.unread or reading.stream_asked and "a stream" or "no JSON"))
end
