-- The client's request body, also one that nginx has put into a file: read in
-- pieces, and changed without having all of it in Lua's memory.
--
-- kong.request.get_raw_body(limit) refuses a body over the limit as a whole,
-- and gives one below it as a single string. An audit wants the beginning of
-- any body and its size, a look at the rest, and no more memory than that.
--
-- It blocks for as long as the page cache takes to copy what is asked for,
-- which is what Kong's own function does.
--
-- nginx bounds the time between two reads only: a client that sends a byte now
-- and then would hold its connection, and room, for days. So a body has to be
-- there in M.seconds, and in more if it is large.

local buffer = require "string.buffer"

local concat = table.concat
local error = error
local ipairs = ipairs
local io_open = io.open
local kong = kong
local min = math.min
local ngx = ngx
local setmetatable = setmetatable
local sub = string.sub
local tonumber = tonumber

-- Larger pieces are more memory for each call that is being read, smaller ones
-- more system calls. 256 KiB take a millisecond at most to look at.
local PIECE_BYTES = 262144

-- A changed body up to this size is handed to nginx as one string.
local SMALL_BYTES = 65536

-- No line that people work over is slower.
local BYTES_A_SECOND = 131072

-- What a body that hides its size may have.
local HIDDEN_BYTES = 16777216

-- How long a body may take where nobody says it: llm-audit's default.
local DEFAULT_SECONDS = 60

local seconds_of_all = DEFAULT_SECONDS

local M = {}

local Body = {}
Body.__index = Body


-- @param seconds that any body may take from now on, 0: for ever; nil for the
-- default
function M.set_seconds(seconds)
  seconds_of_all = seconds or DEFAULT_SECONDS
end


-- The longest of several settings holds until a call has one of its own.
-- @param configs of llm-audit
function M.allow_longest(configs)
  local longest
  for _, conf in ipairs(configs) do
    local seconds = conf.body_seconds
    local is_longer = not longest or seconds == 0
                      or longest ~= 0 and seconds > longest
    longest = is_longer and seconds or longest
  end
  M.set_seconds(longest)
end


-- @return the body's size as the client declares it, nil for a chunked one
function M.declared_size()
  return tonumber(ngx.var.http_content_length)
end


local function read_body(progress)
  ngx.req.read_body()
  progress.is_there = true
end


-- A light thread begins with a function of Lua.
local function sleep(seconds)
  ngx.sleep(seconds)
end


-- HTTP/2 may carry a body without a word of it in the head, neither a length
-- nor a Transfer-Encoding.
-- @return whether the request may have a body of which it does not say how long
-- it is
function M.hides_size()
  return not M.declared_size()
         and (ngx.var.http_transfer_encoding ~= nil
              or kong.request.get_http_version() >= 2)
end


-- @param seconds at most; 0: for ever
-- @param on_wait see M.open
-- @return whether the body came in time; false and what on_wait gave; raises
-- when it cannot be read
local function await_body(seconds, on_wait)
  local thread = ngx.thread
  local progress = { is_there = false }

  local reader = thread.spawn(read_body, progress)
  if progress.is_there then
    -- as a rule it comes with the head
    return true
  end

  local refusal = on_wait and on_wait()
  if refusal then
    thread.kill(reader)
    return false, refusal
  end

  local ok, err
  if seconds == 0 then
    ok, err = thread.wait(reader)
  else
    local clock = thread.spawn(sleep, seconds)
    ok, err = thread.wait(reader, clock)
    thread.kill(clock)
  end
  thread.kill(reader)
  if not ok then
    error(err)
  end

  return progress.is_there
end


-- Waits until nginx has the whole body; Kong does so anyway before it calls
-- the upstream server, unless the route has request_buffering off.
-- @param on_wait called when the body is not there at once, if it is given; its
-- result, if it has one, is returned in place of a body
-- @return the body, with its true `size`; nil and an error, or what on_wait
-- gave; nil and nil when it did not come in time
function M.open(on_wait)
  local declared = M.declared_size()
  if declared == 0 or not declared and not M.hides_size() then
    return setmetatable({ data = "", size = 0 }, Body)
  end

  local seconds = seconds_of_all
  if seconds > 0 then
    seconds = seconds + (declared or HIDDEN_BYTES) / BYTES_A_SECOND
  end
  local is_there, refusal = await_body(seconds, on_wait)
  if not is_there then
    return nil, refusal
  end

  local data = ngx.req.get_body_data()
  if data then
    return setmetatable({ data = data, size = #data }, Body)
  end

  local path = ngx.req.get_body_file()
  if not path then
    return setmetatable({ data = "", size = 0 }, Body)
  end

  local file, err = io_open(path, "rb")
  if not file then
    return nil, err
  end

  local size
  size, err = file:seek("end")
  if not size then
    file:close()
    return nil, err
  end

  return setmetatable({ file = file, path = path, size = size }, Body)
end


-- @return its file, opened again where it was closed; nil where it has none
local function file_of(self)
  if not self.file and self.path then
    self.file = io_open(self.path, "rb")
  end

  return self.file
end


-- @param from position of the first byte, from 1
-- @return `length` bytes from there, fewer at the end; raises when they cannot
-- be read
function Body:read(from, length)
  if self.data then
    if from == 1 and length >= self.size then
      return self.data
    end
    return sub(self.data, from, from + length - 1)
  end

  local wanted = min(length, self.size - from + 1)
  if wanted <= 0 then
    return ""
  end

  local file = file_of(self)
  local data = file and file:seek("set", from - 1) and file:read(wanted)
  if not data or #data < wanted then
    error("cannot read the request body")
  end

  if wanted == self.size and wanted <= PIECE_BYTES then
    -- will be asked for again
    self.data = data
  end

  return data
end


-- @return whether there is exactly one
function Body:is_one_piece()
  return self.size > 0 and self.size <= PIECE_BYTES
end


-- @return an iterator over the body's pieces, in order
function Body:pieces()
  local from = 1

  return function()
    if from > self.size then
      return nil
    end

    local piece = self:read(from, PIECE_BYTES)
    from = from + #piece

    return piece
  end
end


-- @param most bytes
-- @param pause called after each piece; may yield
-- @return the first bytes of the body, copied in pieces
function Body:text(most, pause)
  local size = min(most, self.size)
  if self.data or size <= PIECE_BYTES then
    return self:read(1, size)
  end

  local out = buffer.new(size)
  local from = 1
  while from <= size do
    local piece = self:read(from, min(PIECE_BYTES, size - from + 1))
    out:put(piece)
    from = from + #piece
    pause()
  end

  local text = out:tostring()
  out:free()

  return text
end


-- @param put called with the text of the changed body, in pieces
-- @param pause called after each piece of the body; may yield
local function write_changed(self, changes, put, pause)
  local from = 1

  local function copy_until(to)
    while from <= to do
      local piece = self:read(from, min(PIECE_BYTES, to - from + 1))
      put(piece)
      from = from + #piece
      pause()
    end
  end

  for i = 1, #changes do
    local change = changes[i]
    copy_until(change.from - 1)
    put(change.text)
    from = change.to + 1
  end
  copy_until(self.size)
end


-- Sends a changed body to the server instead. When it raises, the body is in
-- pieces and must not be sent.
-- @param changes list of { from, to, text } in the order of the body: `text`
-- takes the place of those bytes; `to` is from - 1 where nothing goes
-- @param pause called after each piece; may yield
function Body:change(changes, pause)
  if self.size <= SMALL_BYTES then
    local parts = {}
    write_changed(self, changes, function(text)
      parts[#parts + 1] = text
    end, pause)
    kong.service.request.set_raw_body(concat(parts))
    return
  end

  -- nginx puts what exceeds the buffer into a new file, and removes the old
  -- one, which stays readable where it is open.
  file_of(self)
  ngx.req.init_body(PIECE_BYTES)
  write_changed(self, changes, ngx.req.append_body, pause)
  ngx.req.finish_body()
end


function Body:close()
  if self.file then
    self.file:close()
    self.file = nil
  end
end


return M
