-- The request of a call, read once for all plugins that want to know it: which
-- API, which model, whether a stream is asked for. Whoever comes first reads,
-- the others find what it found; what each wants to be different in the body
-- is put into the one text that goes to the server.
--
-- What is known of a call is one table, M.of_call(). Its fields:
--   api              see llm_gateway.api
--   body, request_bytes   the body once it was opened, see request_body
--   found            what the body asks for, see llm_gateway.request and
--                    llm_gateway.form; nil until it was read
--   is_reading       the call ended while its body was awaited
--   is_late          its body did not come in time
--   holding          its room among large bodies, see upload_room
--   refused_by       which plugin answered in place of the model server
--   limited          where a limit holds for the call: limited:on_number is
--                    called once with the number of its entry, what that has
--                    as `llm`, and whether the server reports tokens that
--                    could not be read here
--
-- Not here: what becomes of a body that can be read in two ways. That is for
-- the plugins to say.

local apis = require "llm_gateway.api"
local form = require "llm_gateway.form"
local forwarded = require "llm_gateway.forwarded"
local request = require "llm_gateway.request"
local request_body = require "llm_gateway.request_body"
local upload_room = require "llm_gateway.upload_room"

local new_table = require "table.new"

local error = error
local find = string.find
local kong = kong
local lower = string.lower
local max = math.max
local min = math.min
local ngx = ngx
local pcall = pcall

-- A large body is looked at in so many pieces before other calls get a turn.
local PIECES_A_TURN = 4

-- A large body is copied in so many pieces before others get a turn: copying a
-- piece is some tenth of the work of looking at it.
local COPIES_A_TURN = 16

-- APIs whose requests are forms with a file; servers look at nothing else.
local TAKES_FORM = { transcriptions = true, translations = true }

-- No request has more (bearer.lua).
local MAX_HEADERS = 1000

-- What a turn takes as a rule, and how long nobody works after one. Less than
-- a millisecond nginx does not wait, and without OpenResty's patch it complains
-- about 0.
local TURN_SECONDS = 0.004
local REST_SECONDS = 0.001

-- Room for what is known of a call: a table that grows is filled anew each
-- time.
local FIELDS = 16

local M = {
  -- What M.open raises where a body does not come: how to answer. nginx hangs
  -- up instead of answering where a phase ends with 408: llm-audit makes it one
  -- when the headers leave, and nginx's log has a line that says so.
  LATE = { status = 400, message = "its body took longer than a body of its "
                                   .. "size may take" },
}


-- @return what is known of the call at hand: the same table for all plugins,
-- in all phases
function M.of_call()
  local shared = kong.ctx.shared
  local asked = shared.llm_request
  if not asked then
    asked = new_table(0, FIELDS)
    shared.llm_request = asked
  end

  return asked
end


-- @return the API that the call uses; also where no plugin's access ran
function M.api_of(asked)
  if not asked.api then
    asked.api = apis.of_path(forwarded.path())
  end

  return asked.api
end


-- Whether a model would work for the call. Lists of models, and what is asked
-- of stored responses, are no work.
function M.is_work(asked)
  return kong.request.get_method() == "POST" and M.api_of(asked) ~= "models"
         and not (asked.api == "responses"
                  and find(forwarded.path(), "/v1/responses/[^/]"))
end


-- @return what stands for who calls, in memory only
function M.caller()
  local consumer = kong.client.get_consumer()
  return consumer and consumer.id or ""
end


-- --- large bodies -----------------------------------------------------------

-- From when on a call of this worker may do a piece of long work.
local free_at = 0


-- A call has done a piece of long work. Whoever waits goes on after events of
-- other calls have passed: timers that expire together run one after the other
-- with nothing in between.
function M.end_turn()
  ngx.update_time()
  free_at = ngx.now() + REST_SECONDS
end


-- To be called between two pieces of long work of a call. Lets events of other
-- calls pass; of several calls with long work one does a piece at a time.
function M.await_turn()
  M.end_turn()

  repeat
    local wait = free_at - ngx.now()
    if wait > 2 * TURN_SECONDS then
      -- The clock was set back.
      free_at = 0
    end
    ngx.sleep(max(min(wait, TURN_SECONDS), REST_SECONDS))
  until ngx.now() >= free_at
  -- Until it says that it is done.
  free_at = ngx.now() + TURN_SECONDS
end


-- Of what comes over HTTP/2 without a length only POST has a body as a rule.
local function may_be_empty()
  return not ngx.var.http_transfer_encoding
         and kong.request.get_method() ~= "POST"
end


-- @param size nil where it is hidden
local function take_room(asked, size, room)
  local holding, lacking = upload_room.take(M.caller(), size, room)
  asked.holding = holding
  if not lacking then
    return nil
  end

  return {
    status = lacking == "user" and 429 or 503,
    headers = { ["Retry-After"] = "5" },
    message = lacking == "user"
              and "Too many large requests of yours are on their way; wait "
                  .. "until they have ended"
              or "Too many large requests are on their way",
  }
end


-- Room for the body of the call, unless it has it already.
-- @param room bytes for all bodies of this worker, 0: as many as they like
-- @return nil, or how to answer: { status, headers, message }
function M.take_room(asked, room)
  local size = request_body.declared_size()
  if asked.holding or not size and not request_body.hides_size()
    or not size and may_be_empty()
  then
    return nil
  end

  return take_room(asked, size, room)
end


-- The call has ended.
function M.leave(asked)
  if asked.holding then
    upload_room.give_back(asked.holding)
    asked.holding = nil
  end
end


-- --- the body ---------------------------------------------------------------

-- @return whether the request says that its body is encoded
function M.is_encoded()
  local value = ngx.var.http_content_encoding
  return value ~= nil and value ~= "" and lower(value) ~= "identity"
end


-- Waits until the body is there. Raises when it cannot be had; where there is
-- no room for it a table that says how to answer; M.LATE when it does not come.
-- @return the body
function M.open(asked)
  if asked.body then
    return asked.body
  end

  local function on_wait()
    return not asked.holding and request_body.hides_size()
           and take_room(asked, nil, upload_room.size())
  end

  -- nginx ends a call whose client goes away while its body is read: what
  -- stands behind the read never runs, and neither does http-log, which Kong
  -- had not come to. `log` has to know.
  asked.is_reading = true
  local ok, body, err = pcall(request_body.open, on_wait)
  asked.is_reading = nil
  if not ok then
    error(body)
  end
  if not body then
    asked.is_late = not err
    error(err or M.LATE)
  end

  asked.body = body
  asked.request_bytes = body.size
  if asked.holding then
    upload_room.settle(asked.holding,
                       body.size > upload_room.SMALL_BYTES and body.size or 0)
  end

  return body
end


-- The API decides, as at the server: by the Content-Type a client could have
-- its JSON passed over here and read there.
-- @return what the body should be: "json" or "form"; nil for any other
function M.expected_body(api)
  if TAKES_FORM[api] then
    return "form"
  end

  return api ~= "other" and api ~= "models" and "json" or nil
end


local function feed_pieces(reader, body)
  local pieces = 0

  for piece in body:pieces() do
    if pieces == PIECES_A_TURN then
      M.await_turn()
      pieces = 0
    end
    reader:feed(piece)
    pieces = pieces + 1
  end
  M.end_turn()
end


-- @return called for each piece that is copied, lets others have a turn
local function copy_pause()
  local pieces = 0

  return function()
    pieces = pieces + 1
    if pieces == COPIES_A_TURN then
      M.await_turn()
      pieces = 0
    end
  end
end


-- @return all of a body that is no longer than `most`, else its head
function M.text(asked, most)
  return asked.body:text(most, copy_pause())
end


local function read_with(asked, reader)
  local body = M.open(asked)
  if body:is_one_piece() then
    reader:feed(body:read(1, body.size))
  else
    feed_pieces(reader, body)
  end
  asked.found = reader:finish(body.size)

  return asked.found
end


-- Reads what a JSON body asks for.
-- @return the same as asked.found
function M.read_json(asked)
  return asked.found or read_with(asked, request.new())
end


-- Reads what a form asks for.
-- @return the same as asked.found; nil where the request says that it is none:
-- no server takes it for one
function M.read_form(asked)
  if asked.found then
    return asked.found
  end

  local headers = kong.request.get_headers(MAX_HEADERS)
  local content_type = headers["content-type"]

  return form.is_form(content_type)
         and read_with(asked, form.new(content_type)) or nil
end


-- Sends the body with changes, and with those that were asked for before.
-- @param changes see request_body; nil where there are none
-- @return nil, or a refusal when that failed: then the body is in pieces
function M.change(asked, changes)
  if not changes then
    return nil
  end

  local all = request.merge(asked.changes, changes)
  asked.changes = all
  local ok, err = pcall(asked.body.change, asked.body, all, copy_pause())
  if not ok then
    return { status = 500, message = "the request could not be handed on",
             err = err }
  end
end


-- The plugin has what it wants of the body for now. One that nginx keeps in a
-- file may be opened again later, unless it was changed: nginx has let go of
-- the file then.
function M.rest(asked)
  if asked.body and not asked.changes then
    asked.body:close()
  end
end


-- No plugin will want anything of the body any more.
function M.close(asked)
  if asked.body then
    asked.body:close()
    asked.body = nil
  end
end


return M
