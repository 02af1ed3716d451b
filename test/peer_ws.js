// peer_ws.js - what a Node programmer writes for exportws' job with `ws`: test/bench.c measures it.
//
//     NODE_PATH=build/node/node_modules node test/peer_ws.js
//
// Clients and pushers share one port of loopback, which the ready line names. POST to the path of a
// token goes to its sessions, POST to the bare path to all. Binary messages are sent back.
'use strict';
const http = require('http');
const { WebSocketServer } = require('ws');

const path = '/app/ws/export-task/';
const sessions = new Map();                             // by token: a set of sockets

function deliver(token, body) {
    const to = token ? sessions.get(token) || [] : clients.clients;
    let delivered = 0;
    for (const socket of to) {
        socket.send(body, { binary: false });
        delivered++;
    }
    return delivered;
}

function push(request, response) {
    const chunks = [];
    request.on('data', chunk => chunks.push(chunk));
    request.on('end', () => {
        const delivered = deliver(request.url.slice(path.length), Buffer.concat(chunks));
        response.setHeader('Content-Type', 'application/json');
        response.end(`{"delivered":${delivered}}`);
    });
}

function open(socket, request) {
    const token = request.url.slice(path.length);
    const same = sessions.get(token) || new Set();
    sessions.set(token, same.add(socket));
    socket.on('message', (data, binary) => {
        if (binary)
            socket.send(data);
    });
    socket.on('error', () => {});                       // close follows
    socket.on('close', () => {
        if (same.delete(socket) && same.size === 0)
            sessions.delete(token);
    });
}

const server = http.createServer((request, response) => {
    if (request.method === 'POST' && request.url.startsWith(path))
        return push(request, response);
    response.statusCode = 404;
    response.end();
});
const clients = new WebSocketServer({ server });
clients.on('connection', open);
server.keepAliveTimeout = 3600000;
server.listen(0, '127.0.0.1', 1024, () =>
    console.log(`ready: clients 127.0.0.1:${server.address().port}`));
