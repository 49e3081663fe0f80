import { render } from "preact";

import "./page.css";
import { App } from "./views/app";
import { live } from "./live";

live.start();
render(<App />, document.getElementById("page")!);
