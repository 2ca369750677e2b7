-- How long the gateway works at a request, for bodies that are made to take
-- long: processor time a MiB for reading it and for making it short enough for
-- the log entry, the longest time without a turn for other calls, and the most
-- memory above the body's own. Of each the best of five rounds, of memory the
-- worst.
--
--   luajit tests/bench/hostile.lua [MIB]    from anywhere; 8 MiB unless told

local here = arg[0]:match("^(.*)/[^/]*$") or "."
package.path = here .. "/../../kong-plugins/?.lua;" .. package.path

local hostile = require "spec.helpers.hostile"
local request = require "llm_gateway.request"
local request_text = require "kong.plugins.llm-audit.request_text"

local MIB = 1048576
local SIZE = (tonumber(arg[1]) or 8) * MIB
local KEPT_BYTES = MIB
local ROUNDS = 5

-- As llm_gateway.reading has it.
local PIECE_BYTES = 262144
local PIECES_A_TURN = 4


-- @return reading, its seconds, seconds of making it short, the longest turn
local function work(body)
  local longest, started = 0, os.clock()
  local begun = started

  local function pause()
    local now = os.clock()
    longest = math.max(longest, now - started)
    started = now
  end

  local reader = request.new()
  for from = 1, #body, PIECE_BYTES do
    reader:feed(body:sub(from, from + PIECE_BYTES - 1))
    if (from - 1) / PIECE_BYTES % PIECES_A_TURN == PIECES_A_TURN - 1 then
      pause()
    end
  end
  local reading = reader:finish(#body)
  pause()

  local read = started
  local short = request_text.shorten(body, KEPT_BYTES, pause)
  assert(#short <= KEPT_BYTES)
  pause()

  return reading, read - begun, started - read, longest
end


print(("%-34s %6s %9s %9s %9s %9s  %s"):format(
  "body", "MiB", "read", "shorten", "turn", "KiB more", "read as"))
print(("%-34s %6s %9s %9s %9s"):format("", "", "ms a MiB", "ms a MiB", "ms"))
for _, case in ipairs(hostile.bodies(SIZE)) do
  local body = case[2]
  local read, shorten, turn, more = math.huge, math.huge, math.huge, 0
  local reading

  for _ = 1, ROUNDS do
    collectgarbage()
    collectgarbage()
    local before = collectgarbage("count")
    local found, reading_took, shortening_took, longest = work(body)
    reading = found
    read = math.min(read, reading_took)
    shorten = math.min(shorten, shortening_took)
    turn = math.min(turn, longest)
    more = math.max(more, collectgarbage("count") - before)
  end

  local mib = #body / MIB
  print(("%-34s %6.2f %9.2f %9.2f %9.2f %9.0f  %s"):format(
    case[1], mib, read * 1000 / mib, shorten * 1000 / mib, turn * 1000, more,
    reading.unread or reading.stream_asked and "a stream" or "no JSON"))
end
