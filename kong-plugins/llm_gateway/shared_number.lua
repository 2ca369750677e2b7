-- A number in an ngx.shared dict that several workers add to.
--
-- Nothing is ever evicted for it: where there is no room it is not counted.
-- No function yields.

local M = {}


-- Adds to a number that is not there, unless another worker has just begun it.
-- @param ttl seconds until it goes; nil: it stays
-- @return the new value; nil without room
function M.begin(dict, key, by, ttl)
  local ok, err = dict:safe_add(key, 0, ttl)
  if not ok and err ~= "exists" then
    return nil
  end

  return (dict:incr(key, by))
end


-- @return the new value; nil without room
function M.add(dict, key, by, ttl)
  return dict:incr(key, by) or M.begin(dict, key, by, ttl)
end


return M
