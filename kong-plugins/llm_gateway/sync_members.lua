-- What plugins besides llm-audit tell the collector, and are told by it, with
-- the one request that llm-audit sends for the node each second (its sync.lua).
--
-- A member is { ask, learn, note_gauges }, called in the worker that sends, in
-- a timer:
--   ask(is_running)        the member's value in the request; is_running(name)
--                          tells whether a worker of that name runs
--   learn(told, asked)     with the member's value in the answer; must not
--                          yield. Returns true, or nil and what is wrong
--   note_gauges(gauges)    puts numbers into the request's gauges

local M = {}

local members = {}


-- @param member nil: there is nothing to be told any more
function M.set(name, member)
  members[name] = member
end


-- @return all members by name
function M.all()
  return members
end


return M
