// Reads requests, one as JSON in each line ({secret, headers, body64}), and gives each to the reference libraries: is it signed, and which events are in it?  Writes for each a line of JSON:
// {signed, events: [{id, source, type, specversion, time, partitionkey, traceparent, datacontenttype, data | base64}]}, or {error}.
const { HTTP } = require('cloudevents');
const { Webhook } = require('standardwebhooks');

function is_signed(request, body) {
  const headers = request.headers;
  const webhook = new Webhook(request.secret);
  const expected = webhook.sign(headers['webhook-id'], new Date(1000 * headers['webhook-timestamp']), body);
  if (!headers['webhook-signature'].split(' ').includes(expected)) return false;
  if (/json/.test(headers['content-type'])) webhook.verify(body, headers); // raises; it also parses the body
  return true;
}

function described(event) {
  const { id, source, type, specversion, partitionkey, traceparent, datacontenttype } = event;
  const time = new Date(event.time).toISOString(); // as precise as JavaScript
  const description = { id, source, type, specversion, time, partitionkey, traceparent, datacontenttype };
  event.validate();
  if (ArrayBuffer.isView(event.data)) description.base64 = Buffer.from(event.data).toString('base64');
  else if (event.data_base64) description.base64 = event.data_base64;
  else description.data = event.data;
  return description;
}

function understood(request) {
  const bytes = Buffer.from(request.body64, 'base64');
  const text = /json|text|xml/.test(request.headers['content-type']);
  const body = text ? bytes.toString('utf8') : bytes;
  const events = HTTP.toEvent({ headers: request.headers, body });
  return { signed: text ? is_signed(request, body) : null, events: [].concat(events).map(described) };
}

for (const line of require('fs').readFileSync(0, 'utf8').split('\n').filter(Boolean)) {
  let answer;
  try { answer = understood(JSON.parse(line)); } catch (error) { answer = { error: String(error) }; }
  console.log(JSON.stringify(answer));
}
