-- Lets a browser without JavaScript ask for the usage page: takes the key out
-- of the form that it posts and hands it on as X-API-Key.
--
-- Loaded as `access` and `header_filter` snippet of the pre-function of the
-- usage routes, in front of bearer.lua, in Kong's sandbox. A form is the only
-- way by which a page can send a key that ends up in no address, no history and
-- no log.
--
-- Invariants: the body never goes on, whatever is in it; no more of it is read
-- than a form with a key takes. Other requests pass as they are.

-- A key of 1024 bytes, each of them escaped, and the name of the field.
local MAX_FORM_BYTES = 4096

-- In the phase of the answer: a browser that is refused gets an error of
-- Kong's. It goes back to the page, which says in the reader's language that
-- the key is wrong.
if ngx.get_phase() == "header_filter" then
  if kong.request.get_method() == "POST"
    and kong.response.get_status() == 401
  then
    kong.response.set_header("Refresh", "0; url=usage?refused")
  end

  return
end

if kong.request.get_method() ~= "POST" then
  return
end

-- Without a length it would have to be read to know how much it is.
local length = tonumber(kong.request.get_header("Content-Length"))
if not length or length > MAX_FORM_BYTES then
  return kong.response.exit(413, { message = "not a form with a key" })
end

local form = kong.request.get_body("application/x-www-form-urlencoded")
local key = form and form.key
if type(key) == "string" and key:find("%S") then
  -- As somebody pasted it: no key begins or ends with blanks.
  kong.service.request.set_header("Authorization",
                                  "Bearer " .. key:match("^%s*(.-)%s*$"))
end
kong.service.request.set_raw_body("")
