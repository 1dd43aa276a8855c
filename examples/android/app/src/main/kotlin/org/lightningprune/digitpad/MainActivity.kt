package org.lightningprune.digitpad

import android.content.Intent
import android.os.Bundle
import android.widget.LinearLayout
import org.lightningprune.logic.GrayImage

/** Draw a digit: its class, the confidence and the milliseconds stand above the pad. */
class MainActivity : ModelActivity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val pad = PadView(this) { image -> classify(image) }
        pad.id = android.R.id.input
        val buttons = LinearLayout(this)
        buttons.addView(button("Clear") {
            pad.clear()
            text.text = ""
        })
        buttons.addView(button("Camera") { startActivity(Intent(this, CameraActivity::class.java)) })
        buttons.addView(button("Benchmark") { startActivity(Intent(this, BenchmarkActivity::class.java)) })
        buttons.addView(button("Probe") { startActivity(Intent(this, ProbeActivity::class.java)) })
        show(buttons, text, pad)
    }

    private fun classify(image: GrayImage) = start {
        val (answer, milliseconds) = runner.classify(image)
        text.text = "%s   %.1f %%   %.2f ms".format(answer.label, 100 * answer.confidence, milliseconds)
    }
}
