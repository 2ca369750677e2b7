-- Reads the client's request body, also one that nginx has put into a file.
--
-- kong.request.get_raw_body(limit) refuses a body over the limit as a whole.
-- An audit wants its beginning and its size all the same, hence this module.
--
-- It blocks for as long as the page cache takes to copy what is asked for,
-- which is what Kong's own function does. It never reads more than `wanted`.

local io_open = io.open
local min = math.min
local ngx = ngx
local sub = string.sub
local tonumber = tonumber

local M = {}


-- @return the body's size as the client declares it, nil for a chunked one
function M.declared_size()
  return tonumber(ngx.var.http_content_length)
end


local function read_file(path, wanted)
  local file, err = io_open(path, "rb")
  if not file then
    return nil, err
  end

  local size = file:seek("end")
  local data = ""
  if size and size > 0 and wanted > 0 and file:seek("set", 0) then
    data = file:read(min(size, wanted))
  end
  file:close()

  if not size or not data then
    return nil, "cannot read " .. path
  end

  return data, size
end


-- Waits until nginx has the whole body; Kong does so anyway before it calls
-- the upstream server, unless the route has request_buffering off.
-- @param wanted the most bytes to return
-- @return the body's first bytes and its true size, or nil and an error
function M.read(wanted)
  local declared = M.declared_size()
  if declared == 0 or not (declared or ngx.var.http_transfer_encoding) then
    -- HTTP/2 may carry a body without saying so, but nginx's Lua module
    -- refuses to read such a one.
    return "", 0
  end

  ngx.req.read_body()

  local data = ngx.req.get_body_data()
  if data then
    local size = #data
    return size <= wanted and data or sub(data, 1, wanted), size
  end

  local path = ngx.req.get_body_file()
  if not path then
    return "", 0
  end

  return read_file(path, wanted)
end


return M
