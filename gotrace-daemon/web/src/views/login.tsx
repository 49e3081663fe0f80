// Asks for the token of http.token_file.
import { useState } from "preact/hooks";

import { login } from "../api";

export function Login({ done }: { done: () => void }) {
  const [said, say] = useState("");
  const [token, setToken] = useState("");
  const submit = async () => {
    try {
      if (await login(token.trim())) done();
      else say("This is not the token.");
    } catch (error) {
      say(error instanceof Error ? error.message : String(error));
    }
  };
  return (
    <form
      class="login"
      onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}
    >
      <h1>Token needed</h1>
      <p>
        This gotrace answers with the token of <code>http.token_file</code> only. The browser keeps a cookie in its place until it is closed.
      </p>
      <label>
        Token
        <input type="password" autocomplete="current-password" required value={token} onInput={(event) => setToken(event.currentTarget.value)} />
      </label>
      <button type="submit">log in</button>
      <p role="alert">{said}</p>
      <p class="dim">
        On the command line: <code>curl -H "Authorization: Bearer TOKEN" {location.origin}/api/v1/processes</code>
      </p>
    </form>
  );
}
