// The interview service: a webhook that creates the session of a paid order, once.
// Listens on PORT of this host (put it behind your TLS proxy); WEBHOOK_SECRET is what outbox.subscribe() returned.
const http = require('node:http');
const { Webhook, WebhookVerificationError } = require('standardwebhooks');
const { transaction } = require('./database');

const webhook = new Webhook(process.env.WEBHOOK_SECRET);
const maxBody = 2 * 1024 * 1024; // above outbox.max_payload of the sender

// The bytes as they came: the signature is over them, not over what a JSON parser makes of them.
async function bytesOf(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > maxBody) throw new Error('the body is too large');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

// The inbox lets each event through once. The session is in the same transaction: there are both, or neither.
const createSession = ({ id, data }) => transaction(async (client) => {
  const { rows: [{ accepted }] } = await client.query("SELECT outbox.accept('interviews', $1) AS accepted", [id]);
  if (!accepted) return;
  await client.query('INSERT INTO interview_session (order_id, candidate) VALUES ($1, $2)', [data.order, data.candidate]);
});

// Handles a request; returns the status to answer with. Whatever is not 2xx, the sender tries again.
async function receive(request) {
  const body = await bytesOf(request);
  let event;
  try {
    event = webhook.verify(body, request.headers);
  } catch (error) {
    if (error instanceof WebhookVerificationError) return 401;
    throw error;
  }
  if (event.type === 'PaymentCompleted') await createSession(event);
  return 204; // only now: it is committed. A duplicate and a ping get it too
}

http.createServer(async (request, response) => {
  let status = 503;
  try {
    status = await receive(request);
  } catch (error) {
    console.error(`not done: ${error.message}`);
  }
  response.writeHead(status).end();
}).listen(process.env.PORT, '127.0.0.1');
