-- Who gets a place in the queue of log entries when places become rare.
--
-- Bodies go first: an entry with bodies gets in while seven eighths of the
-- queue are enough; the last eighth is for entries without them, some hundred
-- times as many. What does not fit even so stays out, and is a hole in the
-- numbers. Entries of calls that were refused for want of a key hold at most a
-- sixteenth, so that no flood of them takes a place from a conversation.
--
-- Pure: it looks at numbers and decides.

local floor = math.floor

local M = {}

-- Less would leave entries without bodies no room of their own, more would shed
-- bodies although there is room for them.
local WHOLE_SHARE = 7 / 8

-- Bounds what a flood can hold. At 1 KB an entry this is 8,000 of them for a
-- queue of 128 MiB, which is what limits allow many clients in minutes.
local REFUSED_SHARE = 1 / 16


-- @param room { entries, bytes, refused_entries, refused_bytes: what is in the
-- queue and in the batch under way; max_entries, max_bytes (may be nil) }
-- @param size bytes of the entry
-- @param kind "whole" (with bodies), "bare" (without) or "refused"
function M.fits(room, size, kind)
  local max_entries, max_bytes = room.max_entries, room.max_bytes
  local share = kind == "bare" and 1 or WHOLE_SHARE

  if room.entries >= max_entries or max_bytes and size > max_bytes then
    return false
  end

  if kind == "refused"
    and (room.refused_entries >= floor(max_entries * REFUSED_SHARE)
         or max_bytes
            and room.refused_bytes + size > max_bytes * REFUSED_SHARE)
  then
    return false
  end

  -- An empty queue takes whatever fits into it at all.
  if room.entries == 0 then
    return true
  end

  return room.entries < max_entries * share
         and not (max_bytes and room.bytes + size > max_bytes * share)
end


return M
