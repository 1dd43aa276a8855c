package org.lightningprune.digitpad

import android.app.Activity
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.widget.Button
import android.widget.LinearLayout
import android.widget.TextView
import org.lightningprune.Classified
import org.lightningprune.logic.GrayImage

/** Draw a digit: its class, the confidence and the milliseconds stand below. */
class MainActivity : Activity() {
    private lateinit var text: TextView
    private lateinit var background: Background

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        text = TextView(this)
        text.textSize = 24f
        background = Background(this) { text.text = it }
        val pad = PadView(this) { image -> classify(image) }
        val buttons = LinearLayout(this)
        buttons.addView(button("Clear") {
            pad.clear()
            text.text = ""
        })
        buttons.addView(button("Benchmark") { startActivity(Intent(this, BenchmarkActivity::class.java)) })
        val column = LinearLayout(this)
        column.orientation = LinearLayout.VERTICAL
        column.fitsSystemWindows = true
        for (view in listOf<View>(buttons, text, pad)) column.addView(view)
        setContentView(column)
    }

    private fun classify(image: GrayImage) = background.ask({ it.classify(image) }) { result: Classified ->
        val percent = 100 * result.answer.confidence
        text.text = "%s   %.1f %%   %.2f ms".format(result.answer.label, percent, result.milliseconds)
    }

    private fun button(name: String, action: () -> Unit): Button {
        val button = Button(this)
        button.text = name
        button.setOnClickListener { action() }
        return button
    }

    override fun onDestroy() {
        background.close()
        super.onDestroy()
    }
}
